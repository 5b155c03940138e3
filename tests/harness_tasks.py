"""Tasks of lm-evaluation-harness on local files, and models saved by transformers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from evaluated_models import FAR, TEXTS

VOCAB, POSITIONS = 400, 128
BEGIN, END = "<s>", "</s>"
TASKS: dict[str, dict[str, Any]] = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{text}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_few_shot": {
        "output_type": "multiple_choice",
        "num_fewshot": 2,
        "doc_to_text": "{{choices[0]}}:",
        "doc_to_choice": "{{[' yes', ' no']}}",
        "doc_to_target": "{{label % 2}}",
        "metric_list": [{"metric": "acc"}],
    },
    "tiny_last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1] | join(' ')}}",
        "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "tiny_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 20, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "tiny_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
}
BETTER = {"acc": True, "acc_norm": True, "perplexity": False, "exact_match": True}


def write_tasks(folder: Path) -> None:
    """Write the data, `TASKS`, a group of two of them, and a task whose data is missing."""
    documents = [
        {
            "text": text[40 : 40 + 17 * (number + 3)].strip(),
            "page": text[: 37 * number + 1],
            "choices": [text[start : start + 5 * start + 4] for start in range(2 + number % 3)],
            "label": number % 2,
        }
        for number, text in enumerate(TEXTS[:14])
    ]
    for split, some in (("test", documents[:9]), ("train", documents[9:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {split: str(folder / f"{split}.jsonl") for split in ("test", "train")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "fewshot_split": "train",
    }
    for name, task in TASKS.items():
        metrics = [{"higher_is_better": BETTER.get(one["metric"], False), **one} for one in task["metric_list"]]
        written = {"task": name, **data, **task, "metric_list": metrics, "metadata": {"version": 3}}
        (folder / f"{name}.yaml").write_text(json.dumps(written))
    (folder / "tiny.yaml").write_text(json.dumps({"group": "tiny", "task": ["tiny_choice", "tiny_few_shot"]}))
    missing = {**TASKS["tiny_choice"], "task": "tiny_missing", "dataset_path": "nobody/nothing", "test_split": "test"}
    (folder / "tiny_missing.yaml").write_text(json.dumps(missing))


@functools.cache
def tokenizer(begins: bool) -> Any:
    """A byte-level BPE that adds a begin-of-text token (as Llama) or does not (as GPT-2)."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    specials = [BEGIN, END] if begins else ["<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text[:3000] for text in TEXTS[:20]], trainer)
    if begins:
        made.post_processor = processors.TemplateProcessing(f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    names = {"bos_token": specials[0], "eos_token": specials[-1]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def write_hf_model(path: Path, model_type: str) -> None:
    """Save a transformers model and its tokenizer."""
    import transformers

    if model_type == "llama":
        config = transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=48,
            num_attention_heads=6,
            num_key_value_heads=2,
            num_hidden_layers=2,
            intermediate_size=64,
            max_position_embeddings=POSITIONS,
        )
    else:
        config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS)
    made = tokenizer(model_type == "llama")
    config.bos_token_id, config.eos_token_id = made.bos_token_id, made.eos_token_id
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += FAR * torch.randn_like(parameter)
        model.get_output_embeddings().weight[: 1 + made.eos_token_id] *= 2  # so that it generates special tokens
    model.save_pretrained(path)
    made.save_pretrained(path)
