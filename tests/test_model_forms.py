"""Models that are not as from_pretrained gives them: adapters, shards, offloaded and
quantised weights, heads of another dtype, wrappers.

Each gives the log-probabilities of its own plain forward, or is refused in a sentence.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from model_inputs import NOISE, built, far, five, large
from tiny_models import build
from torch.utils._pytree import tree_map

from rap import ops
from rap.config import Sampling
from rap.errors import RapModelError
from rap.model.driver import ModelDriver
from rap.model.rollouts import generate

NAME = "qwen2_5_vl"

pytestmark = [
    # peft asks transformers for a name that is about to go
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # and says that a layer without a bias gets one
    pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed"),
]


def processor():
    return built(NAME)[1]


def plain_logp(model, driver, prepared):
    """log p of the response tokens by an ordinary forward of the model as it was given."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    with torch.no_grad():
        logits = model(**driver.collate([prepared])).logits
    for module, mode in modes:
        module.training = mode
    logits = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
    rows = logits[0, prepared.n_prompt - 1 : len(prepared) - 1].double()
    return rows.log_softmax(-1).gather(1, prepared.response_ids[:, None])[:, 0]


def our_logp(driver, prepared):
    """The same through the kernel: captured hidden states and the head."""
    trace, head = driver.trace([prepared])[0], driver.head
    found = ops.linear_cde(
        trace.hidden,
        trace.hidden,
        head.weight,
        bias=head.bias,
        scale=head.scale,
        softcap=head.softcap,
        targets=trace.response_ids,
    )
    assert float(torch.as_tensor(found.kl).abs().max()) == 0
    return torch.as_tensor(found.logp1)


def assert_right(model, noise: float = NOISE, name: str = NAME) -> ModelDriver:
    """Log-probabilities as the model's own, up to ``noise`` times the largest."""
    driver = ModelDriver(model, built(name)[1])
    driver.check()
    for prepared in (five(driver)[0], five(driver)[2], five(driver)[3]):
        theirs = plain_logp(model, driver, prepared)
        assert large(theirs) > 3  # nothing is sure: there is something to compare
        assert far(our_logp(driver, prepared), theirs) < noise * large(theirs)
    return driver


def weights_of(model) -> str:
    return str(ModelDriver(model, processor()).identity()["weights_sha256"])


# ---- adapters ------------------------------------------------------------------

QK = ("q_proj", "k_proj")


def adapted(targets=(*QK, "lm_head"), seed=0, model=None, **options):
    """LoRA with random A and B, so that it changes what the model says."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=16,
        lora_dropout=0.5,
        target_modules=list(targets),
        init_lora_weights=False,
        **options,
    )
    return peft.get_peft_model(build(NAME)[0] if model is None else model, config)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"targets": QK},
        {"targets": ("lm_head",)},
        {"task_type": "CAUSAL_LM"},
        {"use_dora": True},
        {"lora_bias": True},
        {"targets": QK, "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_counts(options):
    model = adapted(**options)
    assert model.training  # dropout must be off all the same
    driver = assert_right(model)
    prepared = five(driver)[0]
    with model.disable_adapter():
        without = plain_logp(model, driver, prepared)
        assert_right(model)
    assert far(our_logp(driver, prepared), without) > 0.01


def test_an_adapter_merged_is_the_adapter():
    model = adapted()
    driver = assert_right(model)
    prepared = five(driver)[0]
    before = our_logp(driver, prepared)
    model.merge_adapter()
    again = assert_right(model)
    assert far(our_logp(again, prepared), before) < 10 * NOISE * large(before)
    model.unmerge_adapter()
    whole = assert_right(model.merge_and_unload())
    assert far(our_logp(whole, prepared), before) < 10 * NOISE * large(before)


def test_an_adapter_in_bfloat16():
    # The model's own logits are rounded to 8 bits: 2^-8 of the largest, about 20.
    assert_right(adapted(model=build(NAME)[0].to(torch.bfloat16)), noise=2**-6)


def test_the_head_of_an_adapter_is_its_merged_head():
    model = adapted(targets=("lm_head",))
    head = ModelDriver(model, processor()).head
    layer = model.get_base_model().lm_head
    merged = (layer.base_layer.weight + layer.get_delta_weight("default")).detach()
    assert far(head.weight, merged) < 1e-6 * large(merged)


def test_an_adapter_is_part_of_the_identity():
    model = adapted(targets=QK)
    names = [weights_of(model), weights_of(build(NAME)[0])]
    names.append(weights_of(adapted(targets=QK, seed=1)))
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 2  # the same weights, twice as strong
    names.append(weights_of(model))
    with model.disable_adapter():
        names.append(weights_of(model))
    assert len(set(names)) == len(names)


def test_completions_of_an_adapter_use_our_settings():
    """``top_k=1`` of the checkpoint is not used, and the model is left as it was."""
    model = adapted(targets=QK, task_type="CAUSAL_LM")
    base = model.get_base_model()
    base.generation_config.top_k = 1
    base.generation_config.do_sample = True
    theirs = base.generation_config
    driver = ModelDriver(model, processor())
    prepared = five(driver)[2]
    prompt = driver.with_response(prepared, [])
    sampling = Sampling(max_new_tokens=4)
    (drawn,) = generate(driver, [prompt], [list(range(8))], sampling)
    assert len({c.token_ids for c in drawn}) > 1
    assert base.generation_config is theirs and theirs.top_k == 1


def test_an_adapter_of_the_prompt_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(
        num_virtual_tokens=2,
        task_type="CAUSAL_LM",
        num_layers=2,
        token_dim=64,
        num_attention_heads=4,
    )
    model = peft.get_peft_model(build(NAME)[0], config)
    with pytest.raises(RapModelError, match="PromptTuningConfig.*not supported. Use an"):
        ModelDriver(model, processor())


# ---- heads of another dtype ------------------------------------------------------


def cast_head(model, dtype):
    """As TRL's ``cast_lm_head_to_fp32`` does it."""
    head = model.lm_head.to(dtype)
    head.forward = lambda x: torch.nn.functional.linear(x.to(dtype), head.weight)
    return model


def cast_inputs(model, dtype):
    model.lm_head.to(dtype)
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0].to(dtype),))
    return model


@pytest.mark.parametrize("cast", [cast_head, cast_inputs])
def test_a_float32_head_on_a_bfloat16_body(cast):
    model = cast(build(NAME)[0].to(torch.bfloat16), torch.float32)
    driver = assert_right(model)
    assert driver.head.weight.dtype == torch.float32
    assert driver.describe().head_dtype == "float32"
    assert driver.describe().dtype == "bfloat16"


def test_a_bfloat16_head_on_a_float32_body():
    assert_right(cast_inputs(build(NAME)[0], torch.bfloat16), noise=2**-6)


def test_trl_casts_a_head_that_is_tied_to_the_embedding():
    """The embedding is then float32, too, and its output cast: pixels stay bfloat16."""
    model, _ = build("gemma3")
    model = cast_head(model.to(torch.bfloat16), torch.float32)
    embedding = model.get_input_embeddings()
    assert embedding.weight.dtype == torch.float32
    embedding.register_forward_hook(lambda m, args, output: output.to(torch.bfloat16))
    assert_right(model, name="gemma3")


def test_a_hook_that_changes_the_logits_counts():
    model, _ = build(NAME)
    shift = torch.linspace(0, 3, model.lm_head.weight.shape[0])
    model.lm_head.register_forward_hook(lambda m, args, output: output * 0.5 + shift)
    head = assert_right(model).head
    assert far(head.bias, shift) < NOISE * large(shift)
    assert far(head.weight, model.lm_head.weight.detach() / 2) < NOISE


def test_autocast_and_accelerate(monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    # what an earlier test has set up in this process stays as long as the process
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    model, _ = build(NAME)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_right(model, noise=2**-6)
    prepared = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)
    with pytest.raises(RapModelError, match="keep_fp32_wrapper=False"):
        ModelDriver(prepared, processor()).check()


# ---- weights of another form -------------------------------------------------------


class Wrapped(torch.Tensor):
    """A tensor over another one, without memory of its own: ``data_ptr`` is 0."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, strides=inner.stride()
        )
        made.inner = inner
        return made

    def __repr__(self):
        return "Wrapped"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        args, kwargs = tree_map(
            lambda x: x.inner if isinstance(x, cls) else x, (args, kwargs or {})
        )
        return function(*args, **kwargs)


class Int8(torch.Tensor):
    """An 8-bit weight with a scale a row, in the manner of torchao."""

    @staticmethod
    def __new__(cls, data, scale):
        made = torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=scale.dtype)
        made.data8, made.scale = data, scale
        return made

    def __repr__(self):
        return "Int8"

    def __tensor_flatten__(self):
        return ["data8", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Int8(inner["data8"], inner["scale"])

    def dequantize(self):
        return self.data8.to(self.scale.dtype) * self.scale

    @classmethod
    def of(cls, x):
        scale = x.abs().amax(dim=1, keepdim=True) / 127
        return cls((x / scale).round().to(torch.int8), scale)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].data8, args[0].scale)
        if "mm" not in str(function) and function is not torch.ops.aten.t.default:
            raise NotImplementedError(f"Int8 does not implement {function}")
        args, kwargs = tree_map(
            lambda x: x.dequantize() if isinstance(x, cls) else x, (args, kwargs or {})
        )
        return function(*args, **kwargs)


def with_weights(make, head=True):
    """Every linear layer of the model with weights that ``make`` gives."""
    model, _ = build(NAME)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and (head or name != "lm_head"):
            made = make(module.weight.detach())
            module.weight = torch.nn.Parameter(made, requires_grad=False)
    return model


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("make", [Wrapped, Int8.of])
def test_case_47_a_tensor_without_memory_of_its_own(make, head):
    model = with_weights(make, head)
    driver = assert_right(model)
    assert type(driver.head.weight) is torch.Tensor and driver.head.weight.data_ptr()


def test_case_47_the_head_of_an_int8_model_is_dequantised():
    model = with_weights(Int8.of)
    head = ModelDriver(model, processor()).head
    assert far(head.weight, model.lm_head.weight.dequantize()) < 1e-6


def test_an_int8_model_is_identified_by_what_it_holds():
    assert weights_of(with_weights(Wrapped)) == weights_of(build(NAME)[0])
    model = with_weights(Int8.of)
    before = weights_of(model)
    assert weights_of(with_weights(Int8.of)) == before
    model.lm_head.weight.data8[3, 4] += 1
    changed = weights_of(model)
    model.lm_head.weight.scale[5] *= 1.5
    assert len({before, changed, weights_of(model)}) == 3


class Silent(Wrapped):
    """One that gives its bytes to nobody."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.view.default, torch.ops.aten.reshape.default):
            raise NotImplementedError("no view of this")
        return super().__torch_dispatch__(function, types, args, kwargs)


def test_weights_whose_bytes_cannot_be_read_are_named():
    model = with_weights(Silent, head=False)
    with pytest.raises(RapModelError, match=r"q_proj.weight is a Silent|is a Silent whose"):
        ModelDriver(model, processor()).identity()


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_torchs_dynamic_int8():
    """A head that quantises its inputs is no linear map; a body that does is right."""

    def quantised(module):
        kinds = {torch.nn.Linear}
        return torch.ao.quantization.quantize_dynamic(module, kinds, dtype=torch.qint8)

    with pytest.raises(RapModelError, match="quantises its inputs.*without its head"):
        ModelDriver(quantised(build(NAME)[0]), processor()).check()
    model, _ = build(NAME)
    model.model = quantised(model.model)
    before = weights_of(model)
    assert_right(model)
    other, _ = build(NAME)
    with torch.no_grad():  # in the middle of a packed weight, where no repr shows it
        other.model.language_model.layers[0].mlp.up_proj.weight[60, 30] += 1.0
    other.model = quantised(other.model)
    assert weights_of(other) != before


# ---- offloaded, sharded, wrapped ---------------------------------------------------


def offloaded_to_cpu(folder):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(build(NAME)[0], execution_device="cpu")


def offloaded_to_disk(folder):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.disk_offload(build(NAME)[0], str(folder), execution_device="cpu")


def dispatched(folder):
    accelerate = pytest.importorskip("accelerate")
    places = {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "disk"}
    return accelerate.dispatch_model(
        build(NAME)[0], places, main_device="cpu", offload_dir=folder, force_hooks=True
    )


@pytest.mark.parametrize("move", [offloaded_to_cpu, offloaded_to_disk, dispatched])
def test_an_offloaded_model(move, tmp_path):
    model = move(tmp_path)
    assert model.lm_head.weight.device.type == "meta"
    before = weights_of(model)
    driver = assert_right(model)
    assert driver.describe().device == "cpu"
    assert model.lm_head.weight.device.type == "meta"  # put back
    assert before == weights_of(model) == weights_of(build(NAME)[0])
    assert weights_of(build(NAME, seed=1)[0]) != before


@pytest.fixture(scope="module")
def mesh():
    """One process that torch.distributed takes for a cluster."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    if distributed.is_initialized():
        pytest.skip("torch.distributed is in use by another test")
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"),
    reason="FSDP2 of this torch does not run on CPUs",
)
@pytest.mark.parametrize("unit", ["layers", "head"])
def test_a_model_sharded_by_fsdp2(mesh, unit):
    from torch.distributed.fsdp import fully_shard

    model, _ = build(NAME)
    for part in [*model.model.language_model.layers, *[model.lm_head] * (unit == "head")]:
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    driver = assert_right(model)
    assert driver.identity() == ModelDriver(*built(NAME)).identity()
    assert driver.describe().model_class == "Qwen2_5_VLForConditionalGeneration"
    inputs = driver.collate([five(driver)[0]])
    model(**inputs).logits.sum().backward()  # it still trains
    assert all(p.grad is not None for p in model.lm_head.parameters())


@pytest.mark.filterwarnings("ignore:DTensor random operators")  # of torch 2.6
def test_a_head_split_over_its_rows(mesh):
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model, _ = build(NAME)
    plan = {"lm_head": ColwiseParallel(output_layouts=Replicate())}
    parallelize_module(model, mesh, plan)
    assert isinstance(model.lm_head.weight, DTensor)
    driver = assert_right(model)
    assert weights_of(model) == weights_of(build(NAME)[0])
    assert type(driver.head.weight) is torch.Tensor


def test_a_model_split_over_its_heads_is_refused():
    model, _ = build(NAME)
    model._tp_size = 2  # as from_pretrained(tp_plan="auto") leaves it on two processes
    with pytest.raises(RapModelError, match="only some of the attention heads.*tp_plan"):
        ModelDriver(model, processor()).check()


def test_wrappers_are_looked_through(mesh):
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    model, _ = build(NAME)
    for wrapped in (
        torch.compile(model, backend="eager"),
        DataParallel(model),
        DistributedDataParallel(model),
    ):
        driver = ModelDriver(wrapped, processor())
        assert driver.model is model and driver.describe().device == "cpu"


def test_fsdp1_is_refused_by_name(mesh):
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that FSDP1 is old
        model = FullyShardedDataParallel(build(NAME)[0], device_id=torch.device("cpu"))
    with pytest.raises(RapModelError, match="FSDP1.*fully_shard"):
        ModelDriver(model, processor())
