"""Norms as public projects define them, each written anew: what `replace_norms` meets in the wild.

Every class is built from a number of columns. Its docstring is the project, and what is its own in
the way it is written; `docs/models.md` has both.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Weighted(nn.Module):
    def __init__(self, columns, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(columns))


class Biased(Weighted):
    def __init__(self, columns, eps=1e-5):
        super().__init__(columns, eps)
        self.bias = nn.Parameter(torch.zeros(columns))


class NanoGPTLayerNorm(Biased):
    """nanoGPT: F.layer_norm, the shape is the weight's"""

    def forward(self, input):
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)


class NanoGPTLayerNormNoBias(NanoGPTLayerNorm):
    """nanoGPT, bias=False"""

    def __init__(self, columns):
        super().__init__(columns)
        self.bias = None


class ModdedNanoGPTNorm(nn.Module):
    """modded-nanogpt, nanochat: F.rms_norm without a weight, eps is the machine's"""

    def __init__(self, columns):
        super().__init__()

    def forward(self, x):
        return F.rms_norm(x, (x.size(-1),))


class DeepSeekV3RMSNorm(Weighted):
    """DeepSeek-V3's own code: F.rms_norm"""

    def __init__(self, columns):
        super().__init__(columns)
        self.dim = columns

    def forward(self, x):
        return F.rms_norm(x, (self.dim,), self.weight, self.eps)


class LlamaReferenceRMSNorm(Weighted):
    """LLaMA 1 to 3, Mistral, Mixtral, Qwen 1: the projects' own code"""

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        output = self._norm(x.float()).type_as(x)
        return output * self.weight


class LlamaRMSNorm(Weighted):
    """Hugging Face's Llama, Qwen 2 and 3, Mistral, Phi-3, Grok-1"""

    def forward(self, hidden_states):
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.eps)
        return self.weight * hidden_states.to(dtype)


class WhisperLayerNorm(nn.LayerNorm):
    """Whisper: nn.LayerNorm in float32"""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class CLIPLayerNorm(nn.LayerNorm):
    """CLIP, open_clip: nn.LayerNorm in float32"""

    def forward(self, x):
        kind = x.dtype
        result = super().forward(x.type(torch.float32))
        return result.type(kind)


class DiffusersFP32LayerNorm(nn.LayerNorm):
    """diffusers: F.layer_norm in float32, parameters too"""

    def forward(self, inputs):
        weight = self.weight.float() if self.weight is not None else None
        bias = self.bias.float() if self.bias is not None else None
        y = F.layer_norm(inputs.float(), self.normalized_shape, weight, bias, self.eps)
        return y.to(inputs.dtype)


class DiffusersRMSNorm(Weighted):
    """diffusers: rounds to the weight's dtype where that has 16 bits, else to x's"""

    def forward(self, hidden_states):
        dtype = hidden_states.dtype
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.eps)
        if self.weight is None:
            return hidden_states.to(dtype)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            hidden_states = hidden_states.to(self.weight.dtype)
        return hidden_states * self.weight


class LitGPTRMSNorm(Weighted):
    """litgpt: x * x, mean(dim=-1), weight last in float32"""

    def __init__(self, columns, add_unit_offset=False):
        super().__init__(columns)
        self.add_unit_offset = add_unit_offset
        self.dim = -1

    def forward(self, x):
        dtype = x.dtype
        x = x.float()
        norm_x = torch.mean(x * x, dim=self.dim, keepdim=True)
        x_normed = x * torch.rsqrt(norm_x + self.eps)
        weight = (1 + self.weight) if self.add_unit_offset else self.weight
        return (x_normed * weight.float()).to(dtype=dtype)


class LitGPTGemmaRMSNorm(LitGPTRMSNorm):
    """litgpt's Gemma: adds one in the weight's dtype"""

    def __init__(self, columns):
        super().__init__(columns, add_unit_offset=True)


class TorchtuneRMSNorm(nn.Module):
    """torchtune: the weight is called scale"""

    def __init__(self, columns, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(columns))

    def forward(self, x):
        wide = x.float()
        normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)
        return normed * self.scale


class TorchtuneFp32LayerNorm(nn.LayerNorm):
    """torchtune: nn.LayerNorm in float32"""

    def forward(self, x):
        return super().forward(x.float()).type_as(x)


class ChatGLMRMSNorm(Weighted):
    """ChatGLM 2 to 4: rounds once, at the end"""

    def forward(self, hidden_states):
        dtype = hidden_states.dtype
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.eps)
        return (self.weight * hidden_states).to(dtype)


class InternLMRMSNorm(Weighted):
    """InternLM, Baichuan, T5: rounds to the weight's dtype where that has 16 bits"""

    def forward(self, hidden_states):
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.eps)
        if self.weight.dtype in [torch.float16, torch.bfloat16]:
            hidden_states = hidden_states.to(self.weight.dtype)
        return self.weight * hidden_states


class MiniCPMRMSNorm(Weighted):
    """MiniCPM: a function of the file, weight last"""

    def forward(self, hidden_states):
        return minicpm_rms_norm(hidden_states, self.weight, self.eps)


def minicpm_rms_norm(hidden, weight, eps):
    kind = hidden.dtype
    variance = hidden.to(torch.float32).pow(2).mean(dim=-1, keepdim=True)
    hidden = (hidden * torch.rsqrt(variance + eps)).to(kind)
    return hidden * weight


class GemmaPyTorchRMSNorm(Weighted):
    """gemma_pytorch: adds one in float32"""

    def __init__(self, columns):
        super().__init__(columns)
        self.add_unit_offset = True

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        output = self._norm(x.float())
        if self.add_unit_offset:
            output = output * (1 + self.weight.float())
        else:
            output = output * self.weight.float()
        return output.type_as(x)


class ConvNeXtLayerNorm(Biased):
    """ConvNeXt, channels last: F.layer_norm in one of two branches"""

    data_format = "channels_last"

    def __init__(self, columns):
        super().__init__(columns, 1e-6)
        self.normalized_shape = (columns,)

    def forward(self, x):
        if self.data_format == "channels_last":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtChannelsFirstLayerNorm(ConvNeXtLayerNorm):
    """ConvNeXt, channels first"""

    data_format = "channels_first"


class SAMLayerNorm2d(Biased):
    """Segment Anything, ViTDet: channels first"""

    def forward(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class TimmLayerNorm2d(nn.LayerNorm):
    """timm: moves channels last and back"""

    def forward(self, x):
        x = x.movedim(1, -1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1)


class OLMoLayerNorm(nn.Module):
    """OLMo 1: F.layer_norm in float32, no parameters"""

    def __init__(self, columns):
        super().__init__()
        self.normalized_shape = (columns,)

    def forward(self, hidden_states):
        kind = hidden_states.dtype
        wide = hidden_states.to(dtype=torch.float32)
        return F.layer_norm(wide, self.normalized_shape, None, None, eps=1e-5).to(kind)


class OLMoRMSNorm(Weighted):
    """OLMo's own code: turns autocast off inside"""

    def forward(self, x):
        with torch.autocast(enabled=False, device_type=x.device.type):
            kind = x.dtype
            x = x.to(torch.float32)
            variance = x.pow(2).mean(-1, keepdim=True)
            x = x * torch.rsqrt(variance + self.eps)
            x = x.to(kind)
        return self.weight * x


class Olmo2RMSNorm(Weighted):
    """OLMo 2, GPT-OSS: rounds once, after the weight"""

    def forward(self, hidden_states):
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.eps)
        return (self.weight * hidden_states).to(dtype)


class RWKVLayerNorm(Biased):
    """RWKV 4 to 7: F.layer_norm"""

    def forward(self, x):
        return F.layer_norm(x, (x.shape[-1],), weight=self.weight, bias=self.bias)


class RWKVHeadNorm(Biased):
    """RWKV 5 to 7, over heads: F.group_norm"""

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        return F.group_norm(rows, 4, self.weight, self.bias, 64e-5).view(x.shape)


class MambaRMSNorm(Weighted):
    """Mamba's and flash-attention's reference: 1 / sqrt, in float32"""

    def forward(self, x):
        dtype = x.dtype
        x, weight = x.float(), self.weight.float()
        rstd = 1 / torch.sqrt((x.square()).mean(dim=-1, keepdim=True) + self.eps)
        return (x * rstd * weight).to(dtype)


class Mamba2GatedRMSNorm(Weighted):
    """Mamba 2: a gate may be given"""

    def forward(self, x, z=None):
        dtype = x.dtype
        x = x.float()
        if z is not None:
            x = x * F.silu(z.float())
        rstd = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        return (x * rstd * self.weight).to(dtype)


class MPTLowPrecisionLayerNorm(nn.LayerNorm):
    """MPT, MosaicML: follows autocast by itself"""

    def forward(self, x):
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        with torch.autocast(enabled=False, device_type=x.device.type):
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class MPTRMSNorm(Weighted):
    """MPT, MosaicML: in float32, to x's dtype at the end"""

    def forward(self, x):
        wide = x.float()
        output = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.weight is not None:
            output = output * self.weight
        return output.to(dtype=x.dtype)


class FairseqFp32LayerNorm(nn.LayerNorm):
    """fairseq: F.layer_norm in float32, parameters too"""

    def forward(self, input):
        output = F.layer_norm(
            input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return output.type_as(input)


class MetaLayerNorm(nn.LayerNorm):
    """SigLIP, ViT, GPT-2, Falcon, Phi 1 and 2, BERT: nn.LayerNorm itself"""


class TorchRMSNorm(nn.RMSNorm):
    """torchtitan, timm: nn.RMSNorm itself"""


class LucidrainsLayerNorm(nn.Module):
    """lucidrains' repositories: gamma is a parameter, beta a buffer"""

    def __init__(self, columns):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(columns))
        self.register_buffer("beta", torch.zeros(columns))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class XTransformersRMSNorm(nn.Module):
    """x-transformers: F.normalize times the root of N"""

    def __init__(self, columns):
        super().__init__()
        self.scale = columns**0.5
        self.g = nn.Parameter(torch.ones(columns))

    def forward(self, x):
        return F.normalize(x, dim=-1) * self.scale * self.g


class NeMoLayerNorm1P(nn.LayerNorm):
    """NeMo, Nemotron: adds one to the weight of F.layer_norm"""

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class CohereLayerNorm(Weighted):
    """Command R: centres rows, no bias, in float32"""

    def forward(self, hidden_states):
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        mean = hidden_states.mean(-1, keepdim=True)
        variance = (hidden_states - mean).pow(2).mean(-1, keepdim=True)
        hidden_states = (hidden_states - mean) * torch.rsqrt(variance + self.eps)
        return (self.weight.to(torch.float32) * hidden_states).to(dtype)


class VarMeanLayerNorm(Biased):
    """OpenFold, JAX ports: torch.var without the correction"""

    def forward(self, x):
        wide = x.float()
        mean = wide.mean(-1, keepdim=True)
        variance = wide.var(-1, keepdim=True, unbiased=False)
        y = (wide - mean) * torch.rsqrt(variance + self.eps)
        return (y * self.weight + self.bias).to(x.dtype)


class BertTFLayerNorm(Biased):
    """pytorch-pretrained-bert, ESM-1: the TensorFlow style, divides by the root"""

    def forward(self, x):
        u = x.mean(-1, keepdim=True)
        s = (x - u).pow(2).mean(-1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight * x + self.bias


class GPTNeoXRMSNorm(Weighted):
    """GPT-NeoX, the paper's own code: eps is added to the root"""

    def forward(self, x):
        norm_x = x.norm(2, dim=-1, keepdim=True)
        rms_x = norm_x * x.shape[-1] ** (-1.0 / 2)
        return self.weight * (x / (rms_x + self.eps))


class ScaleNorm(nn.Module):
    """Transformers without tears: one number for a weight"""

    def __init__(self, columns, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.tensor([columns**0.5]))

    def forward(self, x):
        return x * (self.scale / torch.norm(x, dim=-1, keepdim=True).clamp(min=self.eps))


class PlainRMSNorm(Weighted):
    """minimal re-implementations: in x's own dtype"""

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class WeightFirstRMSNorm(Weighted):
    """TinyLlama's fallback: the weight meets rstd first"""

    def forward(self, x):
        wide = x.float()
        rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * (rstd * self.weight.float())).to(x.dtype)


class VLLMRMSNorm(Weighted):
    """vLLM, SGLang: a residual may be given"""

    def forward(self, x, residual=None):
        kind = x.dtype
        x = x.to(torch.float32)
        if residual is not None:
            x = x + residual.to(torch.float32)
        variance = x.pow(2).mean(dim=-1, keepdim=True)
        return (x * torch.rsqrt(variance + self.eps)).to(kind) * self.weight


class DynamicTanh(Biased):
    """DyT: no norm, in the place of one"""

    def __init__(self, columns):
        super().__init__(columns)
        self.alpha = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x):
        return torch.tanh(self.alpha * x) * self.weight + self.bias


class PerHeadLayerNorm(Weighted):
    """Command R's heads: a weight of two axes"""

    def __init__(self, columns):
        super().__init__((4, columns))

    def forward(self, x):
        kind = x.dtype
        x = x.to(torch.float32)
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        x = (x - mean) * torch.rsqrt(variance + self.eps)
        return (self.weight.to(torch.float32) * x).to(kind)


FAMILIES = (Weighted, Biased)
CLASSES = [
    cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, nn.Module) and cls not in FAMILIES
]
