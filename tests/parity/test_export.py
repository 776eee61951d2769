"""Translators that `experiments/convert.py --huggingface` writes, as transformers loads and runs them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Punctuation, case, characters in no subword, spaces that normalization removes.
LINES = ["forty-two", " six  hundred and three ,", "Nine!", "zw\u00f6lf \u4e03", "a" * 20]


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
def test_translations_are_the_same_from_text_to_text(joint, translation_experiment, untrained, entry, tmp_path):
    run = untrained(translation_experiment(joint, output_bias=True), tmp_path / "run")
    assert entry("convert", tmp_path / "run", "--huggingface", tmp_path / "out")[0] == 0
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path / "out")
    module, report = transformers.MarianMTModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not (report["missing_keys"] | report["unexpected_keys"])
    assert tokenizer(LINES).input_ids == run.task.encode(LINES)
    target = run.task.vocabulary.target
    assert tokenizer(text_target=LINES).input_ids == [[*ids, 2] for ids in target.encode(LINES)]
    assert len({len(ids) for ids in run.task.encode(LINES)}) > 2

    inputs = tokenizer(LINES, return_tensors="pt", padding=True)
    longest = 10
    found = module.generate(**inputs, do_sample=False, num_beams=1, max_length=longest + 1)
    theirs = tokenizer.batch_decode(found, skip_special_tokens=True)
    lengths = inputs.attention_mask.sum(1).numpy()
    ours = [
        run.task.translate(
            run.variables, [line], beam_size=1, length_penalty="none", extra_length=int(longest - length)
        )[0][0].text
        for line, length in zip(LINES, lengths, strict=True)
    ]
    assert theirs == ours and len(set(ours)) > 1
    assert np.unique(found[:, 0]).tolist() == [1]
