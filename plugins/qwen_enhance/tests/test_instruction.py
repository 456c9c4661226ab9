import pytest
from wan_host_qwen_enhance.instruction import Instruction, read_instruction
from wan_host_qwen_enhance.settings import read_settings

TEXT = "Write well.\n\nPrompt: a cat\nEnhanced: A cat sleeps.\n\nPrompt: a dog\nEnhanced: A dog\nruns.\n"


def test_a_file_has_a_system_text_and_examples():
    instruction = Instruction(TEXT)
    assert instruction.system == "Write well."
    assert instruction.examples == (("a cat", "A cat sleeps."), ("a dog", "A dog\nruns."))


def test_a_file_without_examples_is_a_system_text():
    instruction = Instruction("Write well.\n")
    assert (instruction.system, instruction.examples) == ("Write well.", ())
    assert instruction.messages("a cat") == [
        {"role": "system", "content": "Write well."},
        {"role": "user", "content": "Prompt: a cat"},
    ]


def test_examples_are_turns_of_the_conversation():
    roles = [message["role"] for message in Instruction(TEXT).messages("a bird")]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]


def test_a_base_model_goes_on_where_the_enhanced_prompt_would_stand():
    assert Instruction(TEXT).completion("a bird").endswith("Prompt: a bird\nEnhanced:")
    assert Instruction(TEXT).completion("a bird").startswith("Write well.\n\nPrompt: a cat\nEnhanced: A cat sleeps.\n\n")


@pytest.mark.parametrize("media", ["video", "image"])
def test_the_instructions_that_come_along_have_examples(media):
    instruction = read_instruction(media, read_settings())
    assert len(instruction.examples) == 2
    for short, enhanced in instruction.examples:
        assert enhanced[1:].startswith(f"{short[1:]}. ")
    assert "light" in instruction.system


def test_only_the_video_instruction_asks_for_motion_and_a_camera():
    video, image = (read_instruction(media, read_settings()) for media in ("video", "image"))
    assert "how the motion goes on" in video.system
    assert "camera" in video.system
    assert "consistent in time" in video.system
    assert "camera" not in image.system


def test_a_file_of_one_s_own_replaces_one_of_them_and_acts_at_once(monkeypatch, tmp_path):
    file = tmp_path / "video.txt"
    file.write_text("Be brief.")
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_VIDEO_INSTRUCTIONS", str(file))
    settings = read_settings()
    assert read_instruction("video", settings).system == "Be brief."
    file.write_text("Be long.")
    assert read_instruction("video", settings).system == "Be long."
    assert "Be long." not in read_instruction("image", settings).text
