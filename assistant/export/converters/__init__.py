"""Other data sets as records. Every function is pure: files in, `Record`s out, in the files' order.

    write_records("train.jsonl", from_llmseg40k("train.json"))
    json.dump(to_llmseg40k(read_records("train.jsonl")), file)
    write_records("ReasonSeg/val.jsonl", from_reasonseg("ReasonSeg/val", prefix="val/"))
    write_records("refcoco.jsonl", from_refer("refs(unc).p", "instances.json", split="val",
    prefix="train2014/")) write_records("camvid.jsonl", from_label_maps("train", dict(enumerate(names)),
    prefix="train/"))

`prefix` is put before an image's file name, because records hold paths from their own file's folder. An empty
mask counts as absent. Where something is not as the format says, BadInput names the file. Given a list as
`bad`, items that cannot be read are put there as (name, reason) instead, and the others are yielded.
"""

from assistant.export.converters.label_maps import from_label_maps
from assistant.export.converters.llmseg40k import LLMSEG_FOLDERS, from_llmseg40k, to_llmseg40k
from assistant.export.converters.reasonseg import from_reasonseg
from assistant.export.converters.refer import from_refer, read_refs

__all__ = [
    "LLMSEG_FOLDERS",
    "from_label_maps",
    "from_llmseg40k",
    "from_reasonseg",
    "from_refer",
    "read_refs",
    "to_llmseg40k",
]
