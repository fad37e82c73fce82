"""Engines: how a frozen network is run when features are extracted; all give the network's own features.

    with started(encoder, ("cls",), "folded", batch_size=64) as run:
        features = run(pixels)                 # uint8 (B, 3, S, S) -> {"cls": (B, D) float32}
        run.parity                             # {"cosine": 1.0, "relative error": 3e-07} to the eager float32 network

`eager` is the network as it is, `folded` (the default) takes batch norm into the convolutions, in double precision,
`compiled` is torch.compile of that and needs a C++ compiler, `openvino` needs the extra `ssl-kd[openvino]`. Convolutional
networks run with channels last. The first images are asked twice, of the engine and of the untouched network in
float32; an engine that answers something else is refused, so a published protocol may use any of them at 32-true.

Tried and left out: onnxruntime (as fast as OpenVINO on a ResNet-50, no gain on a ViT).
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssl_kd.errors import UserError, nearest
from ssl_kd.models.encoder import Encoder
from ssl_kd.runtime.devices import usable

PRECISIONS = ("32-true", "bf16-mixed")
COMPARED = 4  # images that are asked of the untouched network as well
LIMIT = 1e-4  # largest relative error of an engine in float32; correct ones have 1e-7 to 1e-5

Forward = Callable[[Tensor], dict[str, Tensor]]  # uint8 (B, 3, S, S) on the device -> {feature: (B, D) float32}


@dataclass
class Run:
    """A network ready to be asked; `parity` is known after the first batch: least cosine and largest relative error."""

    forward: Forward
    eager: Forward
    name: str
    precision: str
    parity: dict[str, float] = field(default_factory=dict)

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the features of uint8 pixels (B, 3, S, S). UserError when the first ones are not the network's own."""
        with torch.inference_mode():
            found = self.forward(pixels)
            if not self.parity:
                self.parity = self._compare(found, self.eager(pixels[:COMPARED]))
        return found

    def _compare(self, found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
        cosines, errors = [1.0], [0.0]
        for name, own in expected.items():
            given = found[name][: len(own)].double()
            own = own.double()
            if own.isfinite().all() and own.any():  # else the caller names the image
                cosines.append(float(torch.cosine_similarity(given, own).min()))
                errors.append(float((given - own).norm(dim=1).max() / own.norm(dim=1).mean()))
        # torch's, since Python's max passes over NaN
        cosine, error = (
            torch.tensor(cosines, dtype=torch.float64).min().item(),
            torch.tensor(errors, dtype=torch.float64).max().item(),
        )
        if self.precision == "32-true" and not error <= LIMIT:
            raise UserError(
                f"engine {self.name}: gives other features than the network itself (relative error {error:.1e}, at most "
                f"{LIMIT:.0e} is borne); use engine eager"
            )
        return {"cosine": cosine, "relative error": error}


@contextlib.contextmanager
def started(
    encoder: Encoder,
    features: Sequence[str],
    engine: str = "folded",
    device: str | torch.device = "cpu",
    precision: str = "32-true",
    batch_size: int = 64,
) -> Iterator[Run]:
    """Make a network ready to give `features` on a device; weights, mode and device are as before afterwards.

    Batches of at most `batch_size` may come. UserError for an engine that is not known, not installed, or not for this
    device.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if engine not in ENGINES:
        raise UserError(
            f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}.{nearest(engine, list(ENGINES))}"
        )
    wanted, device = tuple(features), usable(device)
    with _resting(encoder, device) as layout:
        plain = _asked(encoder, wanted, device, layout)
        with torch.inference_mode():
            forward = ENGINES[engine](encoder, wanted, device, layout, precision, batch_size)
        yield Run(forward, plain, engine, precision)


def _asked(
    encoder: Encoder, wanted: tuple[str, ...], device: torch.device, layout: torch.memory_format, bf16: bool = False
) -> Forward:
    def forward(pixels: Tensor) -> dict[str, Tensor]:
        pixels = pixels.to(device, memory_format=layout)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            given = encoder.embeddings(pixels.float().div_(255), wanted)
        return {name: given[name].float().cpu() for name in wanted}

    return forward


def _eager(
    encoder: Encoder, wanted: tuple[str, ...], device: torch.device, layout: torch.memory_format, precision: str, _: int
) -> Forward:
    return _asked(encoder, wanted, device, layout, precision == "bf16-mixed")


def _folded(
    encoder: Encoder, wanted: tuple[str, ...], device: torch.device, layout: torch.memory_format, precision: str, _: int
) -> Forward:
    return _asked(fold(encoder), wanted, device, layout, precision == "bf16-mixed")


def _compiled(
    encoder: Encoder,
    wanted: tuple[str, ...],
    device: torch.device,
    layout: torch.memory_format,
    precision: str,
    batch_size: int,
) -> Forward:
    import torch._inductor.config as inductor

    body = torch.compile(_Body(fold(encoder), wanted), dynamic=False)

    def forward(pixels: Tensor) -> dict[str, Tensor]:
        pixels = pixels.to(device, memory_format=layout).float().div_(255)
        try:
            # no_grad, since a frozen graph cannot keep inference tensors; freezing lays the weights out once
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                inductor.patch(freezing=True),
                warnings.catch_warnings(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"),
            ):
                warnings.simplefilter("ignore")
                given = body(pixels.clone())
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"engine compiled: this network cannot be compiled here ({reason}); use engine folded"
            ) from error
        return {name: out.float().cpu() for name, out in zip(wanted, given, strict=True)}

    return _padded(forward, batch_size)


def _openvino(
    encoder: Encoder,
    wanted: tuple[str, ...],
    device: torch.device,
    layout: torch.memory_format,
    precision: str,
    batch_size: int,
) -> Forward:
    try:
        import openvino
    except ImportError as error:
        raise UserError(
            "engine openvino: is not installed; pip install 'ssl-kd[openvino]', or use engine folded"
        ) from error
    if device.type != "cpu":
        raise UserError(f"engine openvino: runs on cpu, not on {device}; use engine folded")
    body, side = _Body(encoder, wanted), encoder.preprocessing.crop or encoder.preprocessing.size
    shape = [batch_size, 3, side, side]
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16-mixed" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, by all threads
    }
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's tracer: shapes are fixed, so what it calls constant is
        model = openvino.convert_model(body, example_input=torch.zeros(2, *shape[1:]))
    model.reshape(shape)
    network = openvino.compile_model(model, "CPU", hints)

    def forward(pixels: Tensor) -> dict[str, Tensor]:
        given = network(pixels.float().div_(255).numpy())
        return {name: torch.from_numpy(given[i].copy()) for i, name in enumerate(wanted)}

    return _padded(forward, batch_size)


ENGINES: dict[str, Callable[..., Forward]] = {
    "eager": _eager,
    "folded": _folded,
    "compiled": _compiled,
    "openvino": _openvino,
}


class _Body(nn.Module):
    """Pixels (B, 3, S, S) in [0, 1] to a tuple of features: what compilers and converters take."""

    def __init__(self, encoder: Encoder, wanted: tuple[str, ...]):
        super().__init__()
        self.encoder, self.wanted = encoder, wanted

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        given = self.encoder.embeddings(images, self.wanted)
        return tuple(given[name] for name in self.wanted)


def _padded(forward: Forward, size: int) -> Forward:
    """Give every batch `size` images, for engines that are made for one shape."""

    def padded(pixels: Tensor) -> dict[str, Tensor]:
        rows = len(pixels)
        if rows < size:
            pixels = torch.cat([pixels, pixels.new_zeros(size - rows, *pixels.shape[1:])])
        return {name: found[:rows] for name, found in forward(pixels).items()}

    return padded


def fold(encoder: Encoder) -> Encoder:
    """Return a twin whose batch norms are taken into the convolutions before them; the encoder where there are none.

    All other tensors are the encoder's own: the twin holds while the encoder stays where it is.

    A pair is found by watching one image pass: a convolution whose output, and nothing else's, goes into one batch
    norm. Weights are multiplied in double precision. timm's batch norms keep the activation that they carry.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()):
        return encoder
    try:
        shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
        twin = copy.deepcopy(encoder, shared).eval()
    except (TypeError, RuntimeError):  # a module from Python that holds a lock, a file or a tensor under way
        return encoder
    names = {module: name for name, module in twin.named_modules()}
    for norm, conv in _pairs(twin):
        mean, variance = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
        scale = (variance + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.double()
        shift = -mean * scale + (0 if norm.bias is None else norm.bias.double())
        weight = conv.weight.double() * scale[:, None, None, None]
        bias = shift if conv.bias is None else shift + conv.bias.double() * scale
        layout = torch.channels_last if _is_last(conv.weight) else torch.contiguous_format
        conv.weight = nn.Parameter(weight.to(conv.weight.dtype, memory_format=layout), requires_grad=False)
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
        parent, _, name = names[norm].rpartition(".")
        carried = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        setattr(twin.get_submodule(parent), name, nn.Sequential(*carried) if carried else nn.Identity())
    return twin


def _is_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def _pairs(encoder: Encoder) -> list[tuple[nn.BatchNorm2d, nn.Conv2d]]:
    """Return each batch norm with the convolution that alone feeds it, both used once, as one image passes."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept, so that its id stays its own
    fed: dict[nn.Conv2d, list[nn.Module]] = {}
    uses: dict[nn.Module, int] = {}

    def enter(module: nn.Module, given: tuple[object, ...]) -> None:
        uses[module] = uses.get(module, 0) + 1
        for item in given:
            if id(item) in made:
                fed.setdefault(made[id(item)][0], []).append(module)

    def leave(module: nn.Conv2d, _: object, output: Tensor) -> None:
        made[id(output)] = (module, output)

    handles = [module.register_forward_pre_hook(enter) for module in encoder.modules() if not list(module.children())]
    handles += [m.register_forward_pre_hook(enter) for m in encoder.modules() if _carries(m) and list(m.children())]
    handles += [m.register_forward_hook(leave) for m in encoder.modules() if type(m) is nn.Conv2d]
    side = encoder.preprocessing.crop or encoder.preprocessing.size
    try:
        device = encoder.mean.device
        encoder.embeddings(torch.zeros(1, 3, side, side, device=device), (encoder.feature,))
    finally:
        for handle in handles:
            handle.remove()
    return [
        (norm, conv)
        for conv, (norm, *others) in fed.items()
        if not others and isinstance(norm, nn.BatchNorm2d) and _carries(norm) and uses[conv] == uses[norm] == 1
    ]


def _carries(module: nn.Module) -> bool:
    """Whether this is a batch norm with statistics that we know: torch's, or timm's with an activation behind it."""
    known = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
    return known and getattr(module, "running_var", None) is not None


@contextlib.contextmanager
def _resting(encoder: Encoder, device: torch.device) -> Iterator[torch.memory_format]:
    """Hold an encoder in eval mode on a device, and put both back afterwards; yields the layout that suits its images.

    Convolutions run 1.3 to 1.7 times as fast on CPUs with channels last, to the same features within rounding.
    """
    modes = [(module, module.training) for module in encoder.modules()]
    home = next((p.device for p in encoder.parameters()), None)
    kernels = [p for p in encoder.parameters() if p.ndim == 4 and p.shape[2] > 1]
    turned = len(kernels) > 1 and all(p.is_contiguous() for p in kernels)  # one kernel is a ViT's patch embedding
    encoder.eval().to(device)
    if turned:
        encoder.to(memory_format=torch.channels_last)
    try:
        yield torch.channels_last if len(kernels) > 1 else torch.contiguous_format
    finally:
        for module, mode in modes:
            module.training = mode
        if turned:
            encoder.to(memory_format=torch.contiguous_format)
        if home is not None:
            encoder.to(home)
