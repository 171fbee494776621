"""For the server's process only: PyPI's torchvision is linked to CUDA and cannot load its
operators beside a CPU-only torch; importing it then fails at two names. No model here uses
them, so they are declared and left without an implementation."""

import torch

_library = torch.library.Library("torchvision", "DEF")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
