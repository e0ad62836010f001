"""A model, described: a tree of frozen values. No torch, no devices, no run settings; hashable; JSON in and out.

Read from the whole to its parts: ``models`` (a decoder, an encoder, both), ``blocks`` (the residual formula and what
hangs on it), ``mixers`` (what each token mixer answers) with ``attention``, ``linear_attention`` and ``recurrent``,
``feed_forward``, ``heads``, ``parts`` (norms, positions). Each tells its cost (``costs``) and its ``words``. What is
irrelevant does not exist: a gated layer is another type than a plain one, not a flag. Every name is found here.
"""

from pellucid.predicates import And as And
from pellucid.predicates import Causal as Causal
from pellucid.predicates import Full as Full
from pellucid.predicates import GlobalTokens as GlobalTokens
from pellucid.predicates import Mask as Mask
from pellucid.predicates import NearBlocks as NearBlocks
from pellucid.predicates import Not as Not
from pellucid.predicates import Or as Or
from pellucid.predicates import Prefix as Prefix
from pellucid.predicates import PrefixPart as PrefixPart
from pellucid.predicates import RandomBlocks as RandomBlocks
from pellucid.predicates import SameSegment as SameSegment
from pellucid.predicates import Strided as Strided
from pellucid.predicates import Summary as Summary
from pellucid.predicates import Window as Window
from pellucid.predicates import big_bird as big_bird
from pellucid.predicates import longformer as longformer
from pellucid.predicates import sparse_transformer as sparse_transformer
from pellucid.predicates import sparse_transformer_fixed as sparse_transformer_fixed
from pellucid.spec.alignment import AlignmentSpec as AlignmentSpec
from pellucid.spec.attention import CAUSAL as CAUSAL
from pellucid.spec.attention import AttentionSpec as AttentionSpec
from pellucid.spec.blocks import NO_NORM as NO_NORM
from pellucid.spec.blocks import POST_NORM as POST_NORM
from pellucid.spec.blocks import PRE_NORM as PRE_NORM
from pellucid.spec.blocks import REORDERED_NORM as REORDERED_NORM
from pellucid.spec.blocks import SANDWICH_NORM as SANDWICH_NORM
from pellucid.spec.blocks import BlockSpec as BlockSpec
from pellucid.spec.blocks import Placement as Placement
from pellucid.spec.blocks import ResidualSpec as ResidualSpec
from pellucid.spec.blocks import StackSpec as StackSpec
from pellucid.spec.feed_forward import Activation as Activation
from pellucid.spec.feed_forward import FeedForwardSpec as FeedForwardSpec
from pellucid.spec.feed_forward import FFNSpec as FFNSpec
from pellucid.spec.feed_forward import GatedFFNSpec as GatedFFNSpec
from pellucid.spec.heads import ClassifierHeadSpec as ClassifierHeadSpec
from pellucid.spec.heads import EncoderHeadSpec as EncoderHeadSpec
from pellucid.spec.heads import LMHeadSpec as LMHeadSpec
from pellucid.spec.heads import MaskedLMHeadSpec as MaskedLMHeadSpec
from pellucid.spec.heads import PoolerHeadSpec as PoolerHeadSpec
from pellucid.spec.heads import TaggerHeadSpec as TaggerHeadSpec
from pellucid.spec.linear_attention import DecayRule as DecayRule
from pellucid.spec.linear_attention import DeltaRule as DeltaRule
from pellucid.spec.linear_attention import GatedDecayRule as GatedDecayRule
from pellucid.spec.linear_attention import KernelRule as KernelRule
from pellucid.spec.linear_attention import LinearAttentionSpec as LinearAttentionSpec
from pellucid.spec.linear_attention import UpdateRule as UpdateRule
from pellucid.spec.mixers import CrossSpec as CrossSpec
from pellucid.spec.mixers import MixerSpec as MixerSpec
from pellucid.spec.models import DecoderSpec as DecoderSpec
from pellucid.spec.models import EmbedSpec as EmbedSpec
from pellucid.spec.models import EncoderDecoderSpec as EncoderDecoderSpec
from pellucid.spec.models import EncoderSpec as EncoderSpec
from pellucid.spec.models import InitRule as InitRule
from pellucid.spec.models import ModelSpec as ModelSpec
from pellucid.spec.models import PatchSpec as PatchSpec
from pellucid.spec.models import load_spec as load_spec
from pellucid.spec.moe import MoESpec as MoESpec
from pellucid.spec.parts import ALiBiSpec as ALiBiSpec
from pellucid.spec.parts import BiasSpec as BiasSpec
from pellucid.spec.parts import BucketedBiasSpec as BucketedBiasSpec
from pellucid.spec.parts import ByPartsScaling as ByPartsScaling
from pellucid.spec.parts import LayerNormSpec as LayerNormSpec
from pellucid.spec.parts import LearnedSpec as LearnedSpec
from pellucid.spec.parts import LinearScaling as LinearScaling
from pellucid.spec.parts import NormSpec as NormSpec
from pellucid.spec.parts import NTKScaling as NTKScaling
from pellucid.spec.parts import PositionSpec as PositionSpec
from pellucid.spec.parts import RMSNormSpec as RMSNormSpec
from pellucid.spec.parts import RotaryScaling as RotaryScaling
from pellucid.spec.parts import RotarySpec as RotarySpec
from pellucid.spec.parts import SinusoidalSpec as SinusoidalSpec
from pellucid.spec.parts import YaRNScaling as YaRNScaling
from pellucid.spec.recurrent import AttentiveRecurrentSpec as AttentiveRecurrentSpec
from pellucid.spec.recurrent import Cell as Cell
from pellucid.spec.recurrent import RecurrentSpec as RecurrentSpec
