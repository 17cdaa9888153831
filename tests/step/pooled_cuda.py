"""The imitated CUDA graphs with what `PassGraphs` takes beside: streams without number."""

from tests.step.emulated_cuda import Cuda, Stream


class Pooled(Cuda):
    """Stands in for torch.cuda."""

    def Stream(self, device: object) -> Stream:
        return Stream(self, "capture")
