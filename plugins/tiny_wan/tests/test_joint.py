"""The joint training forward equals the official pipelines' calls, padding, control scale and all."""

# ruff: noqa: N812, PLW2901, TID253 - tests of numerical code import it at the top
import torch
import torch.nn.functional as F
from training.architecture import TEXT_TOKENS, TINY, build_text_encoder, build_tokenizer, build_transformer
from training.joint import encode_text, patches, velocity


@torch.no_grad()
def test_plain_and_controlled_rows_equal_two_official_calls():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    transformer = build_transformer(TINY).eval()
    for parameter in transformer.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    text_encoder = build_text_encoder(TINY, len(tokenizer)).eval()
    prompts = ["a red circle moving to the right", "", "two stars on a striped background"]
    noisy, timestep = torch.randn(3, 16, 2, 4, 6), torch.tensor([900.0, 500.0, 20.0])
    control = torch.randn(3, 96, 2, 4, 6)

    padded = tokenizer(prompts, padding="max_length", max_length=512, return_tensors="pt")
    states = text_encoder(padded.input_ids, padded.attention_mask).last_hidden_state * padded.attention_mask[..., None]
    scales = torch.zeros(1), torch.ones(1)
    plain, controlled = (transformer(noisy, timestep, states, None, control, scale, return_dict=False)[0] for scale in scales)
    official = torch.cat([plain[:1], controlled[1:]])

    text = encode_text(text_encoder, padded.input_ids[:, :TEXT_TOKENS])
    assert torch.allclose(F.pad(text, (0, 0, 0, 512 - text.shape[1])), states, atol=1e-5)
    ours = velocity(transformer, noisy, timestep, text, control[1:])
    assert torch.allclose(ours, patches(official), atol=1e-4)
