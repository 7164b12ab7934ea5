"""Messages of the public gRPC service to jobs, without a server."""

from __future__ import annotations

import pytest

from cluster.requests import LatencyClass
from deployments.grpc_api import LATENCY_CLASSES, generation_job
from dflash_core.errors import InvalidRequest
from protos import inference_pb2


def test_a_request_without_urgency_is_a_standard_one() -> None:
    job = generation_job(inference_pb2.GenerateRequest(text="a"))
    assert (job.priority, job.latency_class) == (0, LatencyClass.STANDARD)


@pytest.mark.parametrize("latency_class", list(LatencyClass))
def test_every_class_has_a_number_of_its_name(latency_class: LatencyClass) -> None:
    """The command line finds it by that name."""
    number = inference_pb2.LatencyClass.Value(f"LATENCY_CLASS_{latency_class.name}")
    job = generation_job(inference_pb2.GenerateRequest(text="a", priority=-3, latency_class=number))
    assert (job.priority, job.latency_class) == (-3, latency_class)
    assert set(LATENCY_CLASSES) == set(inference_pb2.LatencyClass.values())


def test_a_class_that_there_is_not_is_refused() -> None:
    request = inference_pb2.GenerateRequest()
    request.ParseFromString(inference_pb2.GenerateRequest(text="a").SerializeToString() + bytes([14 << 3, 9]))
    with pytest.raises(InvalidRequest, match="one of 0 to 3, got 9") as caught:
        generation_job(request)
    assert caught.value.param == "latency_class"
