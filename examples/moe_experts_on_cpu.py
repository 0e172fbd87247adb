"""Runs a mixture of experts whose weights are larger than the GPU: its experts stay on the CPU.

    python examples/moe_experts_on_cpu.py phi3.5-moe.gguf "What is GGUF?" --device Vulkan0

A token needs all of attention and a few of the experts. So attention, and the KV cache with it,
goes to the GPU, and the experts, most of the weights, stay in the memory of the machine. The plan
is printed before anything is loaded. Without a GPU it is a plan for the CPU.
"""

from __future__ import annotations

import argparse

import phiggml as pg

EXPERTS = r"ffn_.*_exps"
"""What experts' tensors are called in GGUF files: blk.0.ffn_up_exps.weight and so on."""


def gpus() -> list[str]:
    """Names of the GPUs that are here."""
    return [device.name for device in pg.devices() if device.kind != "cpu"]


def plan_experts_on_cpu(path: str, device: str | None, session: pg.SessionSettings) -> pg.Placement:
    """All layers on the device but for their experts; or, without a device, all on the CPU."""
    if device is None:
        return pg.plan_placement(path, devices=[], session=session)
    return pg.plan_placement(
        path,
        n_gpu_layers="all",
        devices=[device],
        tensor_overrides=[(EXPERTS, "CPU")],
        session=session,
    )


def load_experts_on_cpu(path: str, device: str | None) -> pg.Model:
    """The same, loaded."""
    if device is None:
        return pg.Model(path, devices=[])
    overrides = [(EXPERTS, "CPU")]
    return pg.Model(path, n_gpu_layers="all", devices=[device], tensor_overrides=overrides)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="the GGUF file of a mixture of experts")
    parser.add_argument("prompt")
    parser.add_argument("--device", help="as `phiggml devices` names it; without, the first GPU")
    parser.add_argument("--n-ctx", type=int, default=2048)
    parser.add_argument("--max-tokens", type=int, default=100)
    arguments = parser.parse_args()
    device = arguments.device or next(iter(gpus()), None)
    if device is None:
        print("There is no GPU here, so all of it stays on the CPU.\n")
    settings = pg.SessionSettings(n_ctx=arguments.n_ctx)
    plan = plan_experts_on_cpu(arguments.model, device, settings)
    print(plan, end="\n\n")
    if not plan.fits:
        # n_gpu_layers="auto", the default of Model, would hold as many layers there as there is
        # room for, and experts last: Model(path, session=settings).
        raise SystemExit("It does not fit: nothing was loaded.")
    model = load_experts_on_cpu(arguments.model, device)
    with model, pg.Session(model, n_ctx=arguments.n_ctx) as session:
        for chunk in session.stream(arguments.prompt, max_tokens=arguments.max_tokens):
            print(chunk.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
