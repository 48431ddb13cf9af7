"""What a pose model costs where it runs."""

import statistics
import time

import torch

from pipeline.models.pose import PoseModel

_WARM_UP, _TIMES = 5, 25


def model_mb(model: PoseModel) -> float:
    """Size of the weights, MB."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e6


@torch.inference_mode()
def latency_ms(model: PoseModel, view_size: int) -> float:
    """Median time of one forward pass over one view of this side, ms, in float32 on the model's device."""
    device = model.mean_bone_length.device
    image = torch.zeros((1, 3, view_size, view_size), device=device)
    was_training = model.training
    model.eval()
    times = []
    for _ in range(_WARM_UP + _TIMES):
        wait_for(device)
        start = time.perf_counter()
        model(image)
        wait_for(device)
        times.append(time.perf_counter() - start)
    model.train(was_training)
    return statistics.median(times[_WARM_UP:]) * 1e3


def wait_for(device: torch.device) -> None:
    """Until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
