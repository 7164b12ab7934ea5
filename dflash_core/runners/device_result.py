"""What a pass tells the host: one piece of memory on the device that goes over in one copy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGNMENT = 128


class PinnedResult:
    """Bytes on the device, `device`, and where they arrive, `host`, valid from `wait` to the next `fetch`."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        is_gpu = device.type == "cuda"
        self.device = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self.host = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=is_gpu)
        self._arrived = torch.cuda.Event() if is_gpu else None  # type: ignore[no-untyped-call]

    def fetch(self, num_bytes: int) -> None:
        """Starts the copy of the first `num_bytes` to the host."""
        self.host[:num_bytes].copy_(self.device[:num_bytes], non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> None:
        if self._arrived is not None:
            self._arrived.synchronize()


class DeviceResult:
    """`put` on the device, then `fetch` and `wait` on the host: `choices`, `accepted` and `features` hold them until
    the next `fetch`.

    Layout: choices int64 `[max_rows]`, accepted int32 `[max_rows]`, features `[max_rows, hidden]`; the last are fetched
    for as many rows as are wanted.
    """

    def __init__(self, max_rows: int, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        """`hidden_size` 0: there are no features."""
        accepted_start = max_rows * 8
        self._features_start = -(-(accepted_start + max_rows * 4) // _ALIGNMENT) * _ALIGNMENT
        self._feature_bytes = hidden_size * dtype.itemsize
        self._result = PinnedResult(self._features_start + max_rows * self._feature_bytes, device)

        def parts(buffer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return (
                buffer[:accepted_start].view(torch.int64),
                buffer[accepted_start : accepted_start + max_rows * 4].view(torch.int32),
                buffer[self._features_start :].view(dtype).view(max_rows, hidden_size),
            )

        self._choices, self._accepted, self._features = parts(self._result.device)
        choices, accepted, self.features = parts(self._result.host)
        self.choices: npt.NDArray[np.int64] = choices.numpy()
        self.accepted: npt.NDArray[np.int32] = accepted.numpy()

    def put(self, choices: Tensor, accepted: Tensor, features: Tensor | None) -> None:
        """Queued on the device. `choices [num_choices]` int64, `accepted [num_rows]` int32, `[num_rows, hidden]`."""
        self._choices[: len(choices)].copy_(choices)
        self._accepted[: len(accepted)].copy_(accepted)
        if features is not None:
            self._features[: len(features)].copy_(features)

    def fetch(self, num_feature_rows: int) -> None:
        """Starts the copy to the host."""
        self._result.fetch(self._features_start + num_feature_rows * self._feature_bytes)

    def wait(self) -> None:
        self._result.wait()
