"""How many patterns a network sees at once."""

from spidask.config import parse_config
from spidask.networks.compact import Compact
from spidask.networks.device import choose_batch, resolve_device
from spidask.networks.runtime import Ready
from spidask.networks.yolo import YoloV3

VALUES = {"runs": {"files": ["r.h5"]}, "output": "out"}


def test_batches_suit_the_device_and_the_network():
    config = parse_config(VALUES)
    assert (
        choose_batch(config, Compact, "cpu") == choose_batch(config, Ready(Compact()), "cpu") == 8
    )
    assert choose_batch(config, YoloV3, "cpu") == 1
    assert choose_batch(config, YoloV3, "cuda") == choose_batch(config, Compact, "cuda") == 64
    told = parse_config({**VALUES, "inference": {"batch_size": 5}})
    assert choose_batch(told, YoloV3, "cpu") == choose_batch(told, Compact, "cuda") == 5


def test_openvino_computes_on_the_cpu_whatever_there_is(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = parse_config({**VALUES, "inference": {"runtime": "openvino"}})
    assert resolve_device(config) == "cpu"
    assert resolve_device(parse_config(VALUES)) == "cuda"
