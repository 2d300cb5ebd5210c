"""The compressors keep the laws."""

from __future__ import annotations

from memwrite_compress import (
    AUTOCOMPRESSOR,
    CCM_CONCAT,
    CCM_MERGE,
    COMPRESSOR_500X,
    GIST,
    ICAE,
    MAC,
)
from memwrite_specs import conformance


@conformance(
    GIST, reader="key-value", params={"slots": 2, "segment": 4, "rank": 2, "init_std": 0.5}
)
def test_gist(law) -> None:
    law()


@conformance(
    CCM_CONCAT, reader="key-value", params={"slots": 2, "segment": 4, "keep": 3, "init_std": 0.5}
)
def test_ccm_concat(law) -> None:
    law()


@conformance(CCM_CONCAT, reader="key-value", params={"slots": 2, "keep": None, "init_std": 0.5})
def test_ccm_concat_that_grows(law) -> None:
    law()


@conformance(CCM_MERGE, reader="key-value", params={"slots": 2, "segment": 4, "init_std": 0.5})
def test_ccm_merge(law) -> None:
    law()


@conformance(
    COMPRESSOR_500X,
    reader="key-value",
    params={"slots": 2, "init_std": 0.5, "autoencoding_weight": 0.5},
)
def test_500x(law) -> None:
    law()


@conformance(
    AUTOCOMPRESSOR, reader="prefix", params={"slots": 2, "segment": 4, "keep": 3, "init_std": 0.5}
)
def test_autocompressor(law) -> None:
    law()


@conformance(
    ICAE,
    reader="prefix",
    params={"slots": 2, "segment": 4, "init_std": 0.5, "autoencoding_weight": 0.5},
)
def test_icae(law) -> None:
    law()


@conformance(
    MAC,
    reader="aggregate",
    params={"slots": 2, "segment": 4, "init_std": 0.5},
    reader_params={"heads": 2, "head_dim": 4, "init_std": 0.5},
)
def test_mac(law) -> None:
    law()
