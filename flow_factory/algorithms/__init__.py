"""Algorithms, one file each, and the loss terms that they share.

It knows no model, no reward and no other process.
"""

from flow_factory.utils.registry import Registry

ALGORITHMS = Registry(
    "algorithm",
    {
        "grpo": "flow_factory.algorithms.grpo:GRPO",
        "grpo-guard": "flow_factory.algorithms.grpo_guard:GRPOGuard",
        "dppo": "flow_factory.algorithms.dppo:DPPO",
        "nft": "flow_factory.algorithms.nft:NFT",
        "awm": "flow_factory.algorithms.awm:AWM",
        "dpo": "flow_factory.algorithms.dpo:DPO",
        "sft": "flow_factory.algorithms.sft:SFT",
        "dgpo": "flow_factory.algorithms.dgpo:DGPO",
        "crd": "flow_factory.algorithms.crd:CRD",
        "draft": "flow_factory.algorithms.draft:DRaFT",
        "diffusion-opd": "flow_factory.algorithms.opd:DiffusionOPD",
        "dmd2": "flow_factory.algorithms.dmd2:DMD2",
        "tdm": "flow_factory.algorithms.tdm:TDM",
        "tdm-r1": "flow_factory.algorithms.tdm_r1:TDMR1",
    },
    aliases={
        "flow-grpo": "grpo",
        "flow-dppo": "dppo",
        "diffusion-nft": "nft",
        "diffusion-dpo": "dpo",
        "refl": "draft",
        "opd": "diffusion-opd",
    },
    base="flow_factory.algorithms.base:Algorithm",
)
