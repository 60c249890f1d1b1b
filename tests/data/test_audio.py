"""Reading audio: every source gives the same clips, and what cannot be used is named, not fatal."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image
from scipy.signal import resample_poly

from expunge.data import (
    DataConfig,
    LabelFile,
    LazyInputs,
    Samples,
    audio,
    from_arrays,
    from_dataset,
    read,
)
from expunge.errors import ConfigError, DataError
from expunge_bench.audio_speed import feature_seconds
from oracles_audio import encoded, noise, tone

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EXPUNGE_DATA", ROOT.parent / "shared" / "data"))
WORDS = ["go", "no"]


def hub(
    path: Path, files: list[bytes | None], *, feature: str | None = "Audio", **more: Any
) -> Path:
    """A Parquet file in the Hub's layout; the labels take turns."""
    names = more.pop("names", WORDS)
    stored = pa.array(
        [{"bytes": b, "path": None} for b in files],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    labels = more.pop("label", [i % len(names) for i in range(len(files))])
    table = pa.table({"audio": stored, "label": labels, **more})
    features: dict[str, Any] = {"label": {"names": names, "_type": "ClassLabel"}}
    if feature is not None:
        features["audio"] = {"_type": feature}
    described = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": described}), path)
    return path


def read_here(path: Path, **settings: Any) -> Samples:
    return read(DataConfig(str(path), **{"input": "audio", **settings}), folder=Path("/nowhere"))


def content(samples: Samples) -> np.ndarray:
    return samples.inputs.batch(np.arange(len(samples))).numpy()


def clips(n: int = 8, samples: int = 800) -> list[np.ndarray]:
    return [noise(samples, seed=i) for i in range(n)]


# --- the same clips from every kind of source ---------------------------------------------------


def write_source(kind: str, folder: Path, x: list[np.ndarray]) -> Path:
    names = [f"{WORDS[i % 2]}/{i}.flac" for i in range(len(x))]
    if kind == "parquet":
        return hub(folder / "d.parquet", [encoded(c, kind="FLAC") for c in x])
    for name, clip in zip(names, x, strict=True):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(encoded(clip, kind="FLAC"))
    if kind == "folder":
        return folder
    rows = [{"audio": name, "label": name.partition("/")[0]} for name in names]
    path = folder / f"d.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text("audio,label\n" + "".join(f"{r['audio']},{r['label']}\n" for r in rows))
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "folder"])
def test_every_source_gives_the_same_clips(kind, tmp_path):
    x = clips()
    samples = read_here(write_source(kind, tmp_path, x))
    order = sorted(range(8), key=lambda i: (i % 2, i)) if kind == "folder" else range(8)
    assert content(samples).dtype == np.int16
    assert np.array_equal(content(samples), np.stack([x[i] for i in order]))
    assert [samples.classes[c] for c in samples.labels] == [WORDS[i % 2] for i in order]
    assert samples.sample_rate == 16_000
    assert samples.skipped == {}
    if kind == "folder":
        assert samples.ids.tolist()[:2] == ["go/0.flac", "go/2.flac"]


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_16"), ("WAVEX", "PCM_16"), ("FLAC", "PCM_16")]
)
def test_16_bit_clips_come_as_they_are(kind, subtype, tmp_path):
    x = clips()
    path = hub(tmp_path / "d.parquet", [encoded(c, kind=kind, subtype=subtype) for c in x])
    assert np.array_equal(content(read_here(path)), np.stack(x))


@pytest.mark.parametrize(
    ("kind", "subtype", "most"),
    [("WAV", "PCM_24", 0), ("WAV", "FLOAT", 0), ("FLAC", "PCM_24", 0), ("WAV", "PCM_U8", 255)],
)
def test_other_codings_are_rounded_to_16_bits(kind, subtype, most, tmp_path):
    x = clips()
    files = [encoded(c / 32768, kind=kind, subtype=subtype) for c in x]
    gap = content(read_here(hub(tmp_path / "d.parquet", files))).astype(int) - np.stack(x)
    assert abs(gap).max() <= most


def test_ogg_clips_are_close_to_what_was_coded(tmp_path):
    x = [tone(8000, hertz=300 + 50 * i) for i in range(6)]
    files = [encoded(c, kind="OGG", subtype="VORBIS") for c in x]
    got = content(read_here(hub(tmp_path / "d.parquet", files))).astype(float)
    likeness = [np.corrcoef(a, b)[0, 1] for a, b in zip(got, x, strict=True)]
    assert min(likeness) > 0.98


def test_prepared_clips_are_floats_from_minus_one_to_one():
    x = np.array([[-32768, 0, 16384, 32767]] * 2, dtype=np.int16)
    samples = from_arrays(x, [0, 1], sample_rate=8000)
    expected = torch.tensor([[-1.0, 0.0, 0.5, 32767 / 32768]] * 2)
    assert torch.equal(samples.batch(np.arange(2)), expected)
    assert samples.sample_rate == 8000
    with pytest.raises(DataError, match=r"sample_rate must lie in \[1000, 384000\], not 8"):
        from_arrays(x, [0, 1], sample_rate=8)


def test_data_sets_of_audio_have_a_sample_rate_and_other_inputs_have_none():
    items = [(torch.zeros(20, dtype=torch.int16) + i, i % 2) for i in range(4)]
    assert from_dataset(items, sample_rate=8000, view="speech").sample_rate == 8000
    with pytest.raises(DataError, match="the inputs are not audio, and there is sample_rate"):
        from_dataset([(torch.zeros(1, 8, 8), i % 2) for i in range(4)], sample_rate=8000)
    with pytest.raises(DataError, match=r"a clip has shape \(2, 4000\).*\n  fix: x\[:, 0\]"):
        from_arrays(np.zeros((4, 2, 4000), np.float32), [0, 1, 0, 1], sample_rate=8000)


def test_decoded_sound_of_the_hub_is_read_and_undecoded_sound_gets_a_way_out():
    rng = np.random.default_rng(0)
    rows = [
        {"audio": {"array": rng.random(20), "sampling_rate": 8000, "path": None}, "label": i % 2}
        for i in range(4)
    ]
    samples = from_dataset(rows, sample_rate=8000)
    expected = np.stack([row["audio"]["array"] for row in rows]).astype(np.float32)
    np.testing.assert_array_equal(samples.inputs.batch(np.arange(4)), expected)
    encoded = [{"audio": {"bytes": b"RIFF", "path": None}, "label": i % 2} for i in range(4)]
    with pytest.raises(DataError, match=r"fix: decode it: .* of sound datasets\.Audio\(\)"):
        from_dataset(encoded)


# --- sample rate, length and channels -----------------------------------------------------------


def test_clips_are_resampled_by_the_polyphase_filter(tmp_path):
    x = clips(6, 4410)
    path = hub(tmp_path / "d.parquet", [encoded(c, sample_rate=44_100) for c in x])
    samples = read_here(path, sample_rate=16_000, seconds=0.1)
    expected = [resample_poly(c / 32768, 160, 441) for c in x]
    expected = np.round(np.stack(expected) * 32768).clip(-32768, 32767)
    assert samples.sample_rate == 16_000
    assert content(samples).shape == (6, 1600)
    assert abs(content(samples) - expected).max() <= 1


def test_cutting_before_resampling_changes_nothing(tmp_path):
    x = clips(6, 44_100)
    path = hub(tmp_path / "d.parquet", [encoded(c, sample_rate=44_100) for c in x])
    short = content(read_here(path, sample_rate=16_000, seconds=0.1))
    whole = content(read_here(path, sample_rate=16_000))
    assert whole.shape == (6, 16_000)
    assert abs(short.astype(int) - whole[:, :1600]).max() <= 1


def test_channels_are_mixed_to_their_mean(tmp_path):
    left, right = clips(8), clips(16)[8:]
    both = [np.stack(pair, axis=1) for pair in zip(left, right, strict=True)]
    got = content(read_here(hub(tmp_path / "d.parquet", [encoded(c) for c in both])))
    assert abs(got - (np.stack(left) / 2 + np.stack(right) / 2)).max() <= 0.5


def test_longer_clips_are_cut_at_their_end_and_shorter_ones_padded(tmp_path):
    x = [noise(n, seed=n) for n in (400, 800, 1200, 801)]
    got = content(read_here(hub(tmp_path / "d.parquet", [encoded(c) for c in x]), seconds=0.05))
    assert got.shape == (4, 800)
    for clip, row in zip(x, got, strict=True):
        assert np.array_equal(row, np.pad(clip[:800], (0, max(0, 800 - len(clip)))))


def test_without_seconds_clips_of_several_lengths_are_an_error(tmp_path):
    path = hub(tmp_path / "d.parquet", [encoded(noise(n, seed=n)) for n in (1600, 800, 1600)])
    with pytest.raises(DataError, match=r"0.05 to 0.1 seconds long[\s\S]*fix: set seconds"):
        read_here(path)


def test_without_a_sample_rate_the_most_common_one_is_kept_and_others_are_skipped(tmp_path):
    files = [encoded(c) for c in clips(6)]
    files[4] = encoded(noise(400, seed=0), sample_rate=8000)
    samples = read_here(hub(tmp_path / "d.parquet", files))
    assert samples.sample_rate == 16_000
    assert samples.skipped == {
        4: "have a sample rate of 8000 Hz where most have 16000: set sample_rate"
    }
    assert read_here(hub(tmp_path / "d.parquet", files), sample_rate=16_000).skipped == {}


# --- what cannot be used ------------------------------------------------------------------------


def broken() -> dict[str, bytes | None]:
    """One file a fault, by what is said of it."""
    flac, wav = encoded(noise(4000, seed=1), kind="FLAC"), encoded(noise(4000, seed=1))
    nan = noise(800, seed=2) / 32768
    nan[3] = np.nan
    aiff = io.BytesIO()
    soundfile.write(aiff, noise(800, seed=3), 16_000, format="AIFF")
    return {
        "hold no bytes": None,
        "hold no audio: the recording is empty": encoded(np.zeros(0, dtype=np.int16)),
        "cannot be decoded (damaged, or no audio)": b"no sound at all, but bytes",
        "(truncated or damaged)": flac[: len(flac) // 2],
        "cannot be decoded": wav[:20],
        "hold NaN or infinity": encoded(nan, subtype="FLOAT"),
        "are AIFF files, expected WAV, FLAC or OGG": aiff.getvalue(),
        "have a sample rate of 500 Hz, expected 1000 to 384000": encoded(
            noise(800, seed=4), sample_rate=500
        ),
        "are silent: all samples are equal": encoded(np.full(800, 7, dtype=np.int16)),
        "divide them by their full scale": encoded(nan[4:] * 3000, subtype="FLOAT"),
    }


@pytest.mark.parametrize("reason", broken())
def test_a_clip_that_cannot_be_used_is_left_out_and_named(reason, tmp_path):
    x = clips(6)
    files: list[bytes | None] = [encoded(c) for c in x]
    files.insert(2, broken()[reason])
    path = hub(tmp_path / "d.parquet", files, name=[f"clip{i}" for i in range(7)])
    samples = read_here(path, seconds=0.05, id="name")
    assert list(samples.skipped) == ["clip2"]
    assert reason in samples.skipped["clip2"]
    assert samples.ids.tolist() == [f"clip{i}" for i in (0, 1, 3, 4, 5, 6)]
    assert samples.labels.tolist() == [0, 1, 1, 0, 1, 0]
    assert np.array_equal(content(samples), np.stack(x))


def test_a_missing_file_of_a_manifest_is_left_out(tmp_path):
    path = write_source("csv", tmp_path, clips())
    (tmp_path / "no" / "3.flac").unlink()
    samples = read_here(path)
    assert list(samples.skipped) == [3]
    assert "cannot be read" in samples.skipped[3]


def test_more_than_half_of_the_clips_unfit_is_an_error_with_all_reasons(tmp_path):
    files = [*broken().values(), *(encoded(c) for c in clips(4))]
    path = hub(tmp_path / "d.parquet", files)
    with pytest.raises(DataError, match="10 of 14 clips cannot be used") as error:
        read_here(path, seconds=0.05)
    for words in (
        "hold no bytes: ids 0",
        "hold NaN or infinity: ids 5",
        "are silent: all samples are equal: ids 8",
        "repair or",
    ):
        assert words in str(error.value)


def test_of_equally_common_sample_rates_the_lower_one_is_kept(tmp_path):
    files = [encoded(noise(800, seed=i), sample_rate=(16_000, 8000)[i // 3]) for i in range(6)]
    assert read_here(hub(tmp_path / "d.parquet", files)).sample_rate == 8000


def test_a_class_of_which_half_of_the_clips_are_silent_is_not_silence(tmp_path):
    silent = encoded(np.zeros(800, dtype=np.int16))
    files = [silent if i in (0, 2) else encoded(c) for i, c in enumerate(clips(8))]
    samples = read_here(hub(tmp_path / "d.parquet", files))  # class "go": 0, 2, 4, 6
    assert list(samples.skipped) == [0, 2]


def test_half_of_the_clips_may_be_left_out(tmp_path):
    files = [encoded(c) if i < 4 else None for i, c in enumerate(clips())]
    assert len(read_here(hub(tmp_path / "d.parquet", files)).skipped) == 4


@pytest.mark.parametrize("name", ["_silence_", "Background noise", "silent"])
def test_silence_is_right_where_the_class_is_called_so(name, tmp_path):
    files = [encoded(c) for c in clips(9)]
    files[2] = files[3] = encoded(np.zeros(800, dtype=np.int16))
    path = hub(tmp_path / "d.parquet", files, names=["go", "no", name])
    samples = read_here(path)
    assert list(samples.skipped) == [3]  # of class "go"; 2 is of the silent one
    assert samples.labels.tolist() == [0, 1, 2, 1, 2, 0, 1, 2]


def test_a_class_of_which_most_clips_are_silent_is_silence(tmp_path):
    silent = encoded(np.zeros(800, dtype=np.int16))
    files = [encoded(c) if i % 3 else silent for i, c in enumerate(clips(12))]
    files[0] = encoded(noise(800, seed=99))
    files[1] = silent
    samples = read_here(hub(tmp_path / "d.parquet", files, names=["a", "b", "c"]))
    assert list(samples.skipped) == [1]


def test_a_quiet_recording_is_not_silence(tmp_path):
    files = [encoded(c) for c in clips(6)]
    files[0] = encoded((np.arange(800) % 2).astype(np.int16))
    assert read_here(hub(tmp_path / "d.parquet", files)).skipped == {}


def test_a_flac_file_that_lies_about_its_length_is_bounded(tmp_path):
    files = [bytearray(encoded(c, kind="FLAC")) for c in clips(6)]
    # The 36-bit number of samples ends the 13th to 17th bytes of STREAMINFO, after 8 of headers.
    files[1][8 + 13] |= 0x0F
    files[1][8 + 14 : 8 + 18] = b"\xff" * 4
    path = hub(tmp_path / "d.parquet", [bytes(f) for f in files])
    samples = read_here(path, seconds=0.05)
    assert samples.skipped == {} or list(samples.skipped) == [1]
    with pytest.raises(DataError, match="set seconds"):
        read_here(path)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("FLAC", None), ("OGG", "VORBIS")],
)
def test_damaged_bytes_give_a_clip_or_a_reason(kind, subtype):
    rng = np.random.default_rng(0)
    clip = encoded(noise(2000, seed=1) / 32768, kind=kind, subtype=subtype)
    reasons = 0
    for _ in range(150):
        damaged = bytearray(clip)
        for at in rng.integers(0, 80, rng.integers(1, 5)):
            damaged[at] = rng.integers(0, 256)
        file = Bytes(
            bytes(damaged[: rng.integers(1, len(damaged))] if rng.random() < 0.3 else damaged)
        )
        try:
            x = audio._decode_one(file, 0, 16_000, 1500)
        except audio.InvalidFile:
            reasons += 1
        else:
            assert x.dtype == np.int16
            assert 0 < len(x) <= 1500
    assert reasons > 10


class Bytes:
    """One encoded clip."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return 1

    def read(self, position: int) -> bytes:
        return self._data

    def content(self) -> str:
        return ""


def test_too_long_a_clip_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MAX_VALUES", 700)
    files = [encoded(noise(600, seed=i)) for i in range(5)]
    files[3] = encoded(noise(800, seed=3))
    samples = read_here(hub(tmp_path / "d.parquet", files), seconds=0.05)
    assert samples.skipped == {3: "are longer than 700 values"}


def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.wav").write_bytes(encoded(noise(800, seed=0)))
    path = tmp_path / "in" / "d.csv"
    path.write_text("audio,label\n../out.wav,go\n../out.wav,no\n")
    with pytest.raises(DataError, match="paths that lead outside the folder"):
        read_here(path)


# --- what decides ---------------------------------------------------------------------------------


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def test_without_a_feature_the_first_bytes_decide(tmp_path):
    files = [None, *(encoded(c) for c in clips(6))]
    samples = read_here(hub(tmp_path / "d.parquet", files, feature=None))
    assert content(samples).shape == (6, 800)
    images = read_here(hub(tmp_path / "i.parquet", [png()] * 4, feature=None))
    assert content(images).shape == (4, 1, 8, 8)
    assert images.sample_rate is None


def test_what_is_declared_to_be_audio_is_decoded_as_audio(tmp_path):
    with pytest.raises(DataError, match=r"clips that cannot be decoded \(damaged, or no audio\)"):
        read_here(hub(tmp_path / "d.parquet", [png()] * 4))


def test_images_beside_sound_in_a_folder_are_an_error(tmp_path):
    write_source("folder", tmp_path, clips())
    (tmp_path / "go" / "picture.png").write_bytes(png())
    with pytest.raises(DataError, match=r"both images and audio are in this folder: go/0\.flac"):
        read_here(tmp_path)


def test_settings_of_the_other_kind_are_refused(tmp_path):
    clip = hub(tmp_path / "d.parquet", [encoded(c) for c in clips()])
    with pytest.raises(DataError, match="the inputs are audio, and there is mode and size"):
        read_here(clip, mode="L", size=8)
    images = hub(tmp_path / "i.parquet", [png()] * 4, feature="Image")
    with pytest.raises(DataError, match="not encoded audio, and there is seconds"):
        read_here(images, seconds=1.0)
    with pytest.raises(DataError, match="the inputs are not audio, and there is sample_rate"):
        read_here(images, sample_rate=8000)
    with pytest.raises(DataError, match="this view is for images of shape"):
        read_here(clip, view="crop-flip")
    for bad in ({"sample_rate": 1}, {"seconds": 0.0}, {"seconds": float("nan")}, {"seconds": 1e9}):
        with pytest.raises(ConfigError, match=f"{next(iter(bad))} must"):
            DataConfig("x", **bad)


def test_without_soundfile_the_extra_is_named(tmp_path, monkeypatch):
    path = hub(tmp_path / "d.parquet", [encoded(c) for c in clips()])
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ConfigError, match=r"pip install 'expunge\[audio\]'"):
        read_here(path)


# --- too much for memory, and content -----------------------------------------------------------


def test_clips_that_do_not_fit_into_memory_are_decoded_when_asked_for(tmp_path, monkeypatch):
    files = [encoded(c) for c in clips()]
    files[3] = None
    path = hub(tmp_path / "d.parquet", files)
    resident = read_here(path)
    monkeypatch.setattr(audio, "MAX_BYTES_IN_MEMORY", 100)
    lazy = read_here(path)
    assert isinstance(lazy.inputs, LazyInputs)
    assert np.array_equal(content(lazy), content(resident))
    assert (lazy.skipped, lazy.sample_rate) == (resident.skipped, resident.sample_rate)
    assert np.array_equal(lazy.ids, resident.ids)


def test_the_fingerprint_changes_with_the_sample_rate_and_the_contents(tmp_path):
    x = clips()
    one = hub(tmp_path / "1.parquet", [encoded(c) for c in x])
    two = hub(tmp_path / "2.parquet", [encoded(c, sample_rate=8000) for c in x])
    a, b = read_here(one).fingerprint(), read_here(two).fingerprint()
    assert a["inputs"] == b["inputs"]
    assert a != b
    assert a == read_here(one).fingerprint()
    x[0] = x[1]
    three = hub(tmp_path / "3.parquet", [encoded(c) for c in x])
    assert read_here(three).fingerprint()["inputs"] != a["inputs"]


def test_the_first_rows_and_labels_of_another_file_go_by_id(tmp_path):
    files: list[bytes | None] = [encoded(c) for c in clips()]
    files[1] = None
    path = hub(tmp_path / "d.parquet", files, id=list(range(100, 108)))
    other = tmp_path / "labels.csv"
    other.write_text("id,label\n" + "".join(f"{100 + i},{WORDS[i < 4]}\n" for i in range(8)))
    labels = LabelFile(str(other), "label")
    samples = read_here(path, id="id", max_rows=6, labels=labels)
    assert samples.ids.tolist() == [100, 102, 103, 104, 105]
    assert [samples.classes[c] for c in samples.labels] == ["no", "no", "no", "go", "go"]


def test_the_benchmark_of_features_counts_what_it_reads(tmp_path):
    path = hub(tmp_path / "d.parquet", [encoded(c, kind="FLAC") for c in clips()])
    found = feature_seconds(path, n=6, repeats=1)
    assert found["n"] == 6
    assert 0 < found["read"] < np.inf
    assert 0 < found["features"] < np.inf


@pytest.mark.skipif(
    not (DATA / "speech_commands").is_dir(), reason=f"no clips in {DATA}: set EXPUNGE_DATA"
)
def test_speech_commands_are_read_whole():
    path = DATA / "speech_commands" / "test.parquet"
    samples = read_here(path, id="id", sample_rate=16_000, seconds=1.0, view="speech")
    assert content(samples).shape == (1022, 16_000)
    assert samples.classes[-2:] == ("_unknown_", "_silence_")
    assert samples.skipped == {}
