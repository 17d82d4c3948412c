"""What the benchmarks share that ask questions whose truth is masks: records, reasonseg, llmseg40k and
refer."""
