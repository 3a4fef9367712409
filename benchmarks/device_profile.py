"""Where the nodes of a graph run when a provider has it: from a profiled session of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.node_profile import NodeProfile, read_profile
from benchmarks.onnx_subject import choose_providers, open_device
from benchmarks.subject import Case, EngineMissing
from serving.engines.acceleration import Acceleration
from serving.engines.bound_session import BoundSession, image_tensor, result_tensor
from serving.engines.graph import cut_to, outputs_of, read_graph, read_spec
from serving.engines.half_logits import narrow_half_logits
from serving.engines.onnxruntime_session import open_session, session_options
from serving.engines.providers import without_cuda_graphs
from serving.errors import InvalidModel

RUNS = 3


def profile_graph(case: Case, engine: str, acceleration: Acceleration) -> NodeProfile:
    """Runs a case a few times with input and output bound to the device, as the engine does.

    So every copy in the profile is one that the graph itself causes. Kernel by kernel: a captured
    graph has no nodes to tell of.

    Raises EngineMissing where the provider does not start.
    """
    assert case.graph is not None
    whole = read_graph(case.graph)
    model = cut_to(case.graph, whole, case.output or outputs_of(whole)[0])
    spec = read_spec(case.graph, model, 1, case.batch)
    model = narrow_half_logits(model)
    device = open_device(engine)
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(acceleration, 1, case.threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        providers = choose_providers(engine, acceleration, spec, device)
        try:
            session = open_session(
                case.graph, model.SerializeToString(), options, without_cuda_graphs(providers)
            )
        except InvalidModel as error:
            device.close()
            raise EngineMissing(str(error)) from error
        bound = BoundSession(
            session, device, image_tensor(case.height, case.width), result_tensor(model, spec),
            case.batch, graphs=False,
        )  # fmt: skip
        for _ in range(RUNS):
            bound.run(case.images())
        profile = read_profile(Path(session.end_profiling()))
        del bound, session
        device.close()
        return profile
