"""Whatever ran before a job, cancelled or failed, adapted or placed elsewhere, the job makes the same frames."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch  # noqa: TID253  # a test of torch code
from safetensors.torch import save_file
from wan_host_wan21.generation import generate
from wan_host_wan21.memory import Placement

from wan_host import JobCancelled, Lora, ReferenceMode, References


@pytest.fixture
def adapter(vace, tmp_path, monkeypatch):
    rows, columns = vace.components.plain.get_submodule("blocks.0.attn1.to_q").weight.shape
    layer = "transformer.blocks.0.attn1.to_q"
    state = {f"{layer}.lora_A.weight": torch.randn(2, columns), f"{layer}.lora_B.weight": torch.randn(rows, 2)}
    save_file(state, tmp_path / "any.safetensors")
    settings = vace.settings.model_copy(update={"loras_dir": tmp_path})
    monkeypatch.setattr(vace.loras, "_settings", settings)
    yield Lora(name="any", scale=0.9)
    vace.loras.remove()


def test_jobs_in_any_order_make_what_each_makes_alone(*, vace, video, image, picture, recorder, adapter, monkeypatch):
    monkeypatch.setattr("wan_host_wan21.placement.budget_bytes", lambda *_: 10**12)
    first, last = picture(1), picture(2)
    references = References(image=first, first_frame=first, last_frame=last)
    jobs = [
        video(frames=5),
        video(frames=5, guidance_scale=1.0, sample_solver="unipc"),
        image(num_images=2, num_inference_steps=2),
        image(reference_mode=ReferenceMode.SINGLE, references=references, denoise_strength=0.4),
        video(frames=6, reference_mode=ReferenceMode.BOTH, references=references),
        video(frames=5, reference_mode=ReferenceMode.SINGLE, references=references, denoise_strength=0.2),
        video(frames=5, reference_mode=ReferenceMode.END, references=References(last_frame=last, subjects=(first,))),
        video(frames=5, loras=(adapter,)),
        image(reference_mode=ReferenceMode.SINGLE, references=references, loras=(adapter,)),
    ]

    def frames(job):
        return [clip.frames for clip in generate(job, vace, recorder()).clips]

    alone = [frames(job) for job in jobs]
    order = random.Random(0)
    for _ in range(30):
        index = order.randrange(len(jobs))
        if order.random() < 0.3:
            moment = order.choice(["stage denoise", "stage decode", "decoding", "encoding with the VAE"])
            context = recorder(stop_at=moment, error=JobCancelled("stop"))
            if moment == "encoding with the VAE" and jobs[index].reference_mode is ReferenceMode.NONE:
                continue
            with pytest.raises(JobCancelled):
                generate(jobs[index], vace, context)
            continue
        made = frames(replace(jobs[index], attempt=order.choice([1, 1, 2, 3])))
        assert all(np.array_equal(ours, expected) for ours, expected in zip(made, alone[index], strict=True)), index
    vace.placer.place(Placement.RESIDENT)
