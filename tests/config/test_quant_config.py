import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vitquant.config import BitType, FieldError, QuantConfig
from vitquant.config.explain import yaml_number


def test_defaults() -> None:
    config = QuantConfig()
    assert config.model_dump() == {
        "calibration_mode": "layer_wise",
        "bit_type": {"bits": 8, "signed": True},
        "observer_type": "MinmaxObserver",
        "quantization_method": "uniform",
        "percentile_alpha": 0.99999,
        "percentile_sigma": 0.01,
        "kl_bins": 2048,
        "range_margin": 1.0,
        "enable_profiler": False,
        "output_quant_enable": True,
        "softmax": "uniform",
        "approximation": "table",
        "weight_groups": 0,
    }


def test_every_field_is_documented() -> None:
    for model in (QuantConfig, BitType):
        assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("signed", [True, False])
def test_all_allowed_bit_types(bits: int, signed: bool) -> None:
    assert QuantConfig.model_validate({"bit_type": {"bits": bits, "signed": signed}}).bit_type == BitType(
        bits=bits, signed=signed
    )


@pytest.mark.parametrize("name", ["uniform", "Uniform", "POWER_OF_TWO", "Power_of_Two"])
def test_the_method_takes_any_letter_case(name: str) -> None:
    assert QuantConfig.model_validate({"quantization_method": name}).quantization_method == name.lower()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"bit_type": {"bits": 3.5}}, "bit_type.bits: value not allowed. Got 3.5, expected an integer from 2 to 16."),
        ({"bit_type": {"bits": 1}}, "bit_type.bits: value not allowed. Got 1, expected an integer from 2 to 16."),
        ({"bit_type": {"bits": 17}}, "bit_type.bits: value not allowed. Got 17, expected an integer from 2 to 16."),
        ({"bit_type": {"bits": True}}, "bit_type.bits: value not allowed. Got true, expected an integer from 2 to 16."),
        ({"bit_type": {"bits": "8"}}, "Got '8', expected an integer from 2 to 16. Fix: write 8, which YAML reads as"),
        ({"bit_type": {"signed": 1}}, "bit_type.signed: value not allowed. Got 1, expected true or false."),
        ({"bit_type": {"signed": "true"}}, "Got 'true', expected true or false. Fix: write true without quotes."),
        ({"bit_type": 8}, "bit_type: not a mapping of settings. Got 8, expected the keys bits, signed."),
        ({"bit_type": None}, "bit_type: not a mapping of settings. Got nothing (null), expected the keys"),
        ({"percentile_alpha": 2}, "Got 2, expected a number above 0.5 and at most 1."),
        ({"percentile_alpha": 0.5}, "Got 0.5, expected a number above 0.5 and at most 1."),
        ({"percentile_alpha": float("nan")}, "Got nan, expected a number above 0.5 and at most 1."),
        ({"percentile_alpha": True}, "Got true, expected a number above 0.5 and at most 1."),
        ({"percentile_sigma": 0.0}, "Got 0.0, expected a number above 0 and at most 1."),
        ({"percentile_sigma": "1e-5"}, "Fix: write 1.0e-5, which YAML reads as a number."),
        ({"kl_bins": 65}, "Got 65, expected an even integer from 64 to 65536."),
        ({"kl_bins": 62}, "Got 62, expected an even integer from 64 to 65536."),
        ({"kl_bins": 65538}, "Got 65538, expected an even integer from 64 to 65536."),
        ({"kl_bins": 2048.0}, "Got 2048.0, expected an even integer from 64 to 65536."),
        ({"range_margin": 0.9}, "range_margin: value not allowed. Got 0.9, expected a number from 1 to 4."),
        ({"enable_profiler": None}, "enable_profiler: value not allowed. Got nothing (null), expected true or false."),
        ({"calibration_mode": "chanel_wise"}, "layer_wise, channel_wise, head_wise. Fix: write channel_wise."),
        ({"observer_type": "minmax"}, "OmseObserver. Fix: write MinmaxObserver."),
        ({"observer_type": ["KLObserver"]}, "Got ['KLObserver'], expected one of MinmaxObserver, "),
        ({"observer_typ": "KLObserver"}, "unknown key `observer_typ`, did you mean `observer_type`."),
        ({"bits": 4}, "bits: unknown key `bits`. Expected one of"),
        ({"bits": 4}, "Fix: write it inside bit_type, as in bit_type: {bits: ...}."),
        (
            {"bit_type": {"bit": 4}},
            "bit_type.bit: unknown key `bit`, did you mean `bits`. Expected one of bits, signed.",
        ),
        (
            {"softmax": "row"},
            "softmax: row needs an unsigned bit_type. Got bit_type.signed: true, expected bit_type.signed: f",
        ),
        ({"softmax": "log2"}, "softmax: log2 needs an unsigned bit_type."),
        ({"weight_groups": -1}, "weight_groups: value not allowed. Got -1, expected an integer from 0 to 4096."),
        ({"weight_groups": 5000}, "weight_groups: value not allowed. Got 5000, expected an integer from 0 to 4096."),
        ({"weight_groups": 32.0}, "weight_groups: value not allowed. Got 32.0, expected an integer from 0 to 4096."),
        ({"weight_groups": True}, "weight_groups: value not allowed. Got true, expected an integer from 0 to 4096."),
        (
            {"weight_groups": 32, "bit_type": {"bits": 5}},
            "weight_groups needs a signed bit_type of few bits. Got bit_type: {bits: 5, signed: true}, expected at "
            "most 4 bits and signed: true, so that 8 bits hold a weight times 16. Fix: set weight_groups: 0, or",
        ),
        ({"weight_groups": 1, "bit_type": {"bits": 4, "signed": False}}, "Got bit_type: {bits: 4, signed: false}"),
    ],
)
def test_what_is_refused_and_how_it_is_said(data: dict[str, object], expected: str) -> None:
    with pytest.raises(FieldError) as caught:
        QuantConfig.model_validate(data)
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_constructor_raises_the_same_error() -> None:
    with pytest.raises(FieldError, match=r"QuantConfig bit_type\.bits: value not allowed\. Got 99"):
        BitType(bits=99)
    with pytest.raises(FieldError, match=r"QuantConfig softmax"):
        QuantConfig(softmax="row")
    assert QuantConfig(softmax="row", bit_type=BitType(signed=False)).softmax == "row"


def test_frozen_equal_hashable_and_picklable() -> None:
    config = QuantConfig(bit_type=BitType(bits=4))
    with pytest.raises(ValidationError, match="frozen"):
        config.kl_bins = 64  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.bit_type.bits = 5  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert hash(again) == hash(config)
    assert config != QuantConfig()


@given(st.integers(-999, 999), st.booleans(), st.integers(-30, 30))
def test_the_advised_number_is_one_to_yaml_and_equal(mantissa: int, dot: bool, exponent: int) -> None:
    import yaml

    text = f"{mantissa}{'.25' if dot else ''}e{exponent}"
    advice = yaml_number(text)
    assert advice is not None
    assert yaml.safe_load(advice) == float(text)


@pytest.mark.parametrize("text", ["", "abc", "1e", "0x10", "1.0.0", "nan"])
def test_no_number_is_advised_for_other_text(text: str) -> None:
    assert yaml_number(text) is None


def test_config_does_not_import_torch() -> None:
    code = "import sys, vitquant.config; sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
