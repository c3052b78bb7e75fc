"""The configuration of a run: strict schemas of the YAML, loading, batch arithmetic, help.

It imports neither torch nor diffusers.
"""

from flow_factory.config.algorithms import (
    TRAIN_CONFIGS,
    AWMConfig,
    CRDConfig,
    DGPOConfig,
    DPOConfig,
    DRaFTConfig,
    ForwardConfig,
    NFTConfig,
    OldPolicyConfig,
    SFTConfig,
)
from flow_factory.config.base import ConfigError, Section
from flow_factory.config.data import DataConfig
from flow_factory.config.distillation import OPDConfig, TeacherConfig
from flow_factory.config.dump import config_tree, dump_config
from flow_factory.config.eval import EvalConfig, pipeline_kwargs
from flow_factory.config.few_steps import DMD2Config, FewStepConfig, PathConfig, TDMConfig, TDMR1Config
from flow_factory.config.gate import GateConfig
from flow_factory.config.help import config_help
from flow_factory.config.loader import load_config
from flow_factory.config.log import LogConfig
from flow_factory.config.model import ModelConfig
from flow_factory.config.plan import BatchPlan, plan_of
from flow_factory.config.rewards import RewardConfig
from flow_factory.config.run import RunConfig
from flow_factory.config.scheduler import SchedulerConfig
from flow_factory.config.train import TrainConfig
from flow_factory.config.transition import DPPOConfig, GRPOConfig, GRPOGuardConfig, TransitionConfig

__all__ = [
    "TRAIN_CONFIGS",
    "AWMConfig",
    "BatchPlan",
    "CRDConfig",
    "ConfigError",
    "DGPOConfig",
    "DMD2Config",
    "DPOConfig",
    "DPPOConfig",
    "DRaFTConfig",
    "DataConfig",
    "EvalConfig",
    "FewStepConfig",
    "ForwardConfig",
    "GRPOConfig",
    "GRPOGuardConfig",
    "GateConfig",
    "LogConfig",
    "ModelConfig",
    "NFTConfig",
    "OPDConfig",
    "OldPolicyConfig",
    "PathConfig",
    "RewardConfig",
    "RunConfig",
    "SFTConfig",
    "SchedulerConfig",
    "Section",
    "TDMConfig",
    "TDMR1Config",
    "TeacherConfig",
    "TrainConfig",
    "TransitionConfig",
    "config_help",
    "config_tree",
    "dump_config",
    "load_config",
    "pipeline_kwargs",
    "plan_of",
]
