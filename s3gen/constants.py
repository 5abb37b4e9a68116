"""The rates and sizes that every part agrees on. Each is stated once; ratios are exact."""


def exact_div(a: int, b: int) -> int:
    """``a / b``, which must be whole.

    Raises:
        ValueError: ``b`` does not divide ``a``.
    """
    if a % b:
        raise ValueError(f"{a} is not a multiple of {b}")
    return a // b


SAMPLE_RATE = 24_000  # Hz, of the audio that is made
LOUDEST = 2.0**31  # of full scale, of clips: 32-bit integers stored as floats; from 1e15 on, power overflows float32
MEL_HOP = 480  # samples at SAMPLE_RATE between two mel frames
MEL_BINS = 80
MEL_RATE = exact_div(SAMPLE_RATE, MEL_HOP)  # mel frames per second

TOKEN_RATE = 25  # speech tokens per second
VOCAB_SIZE = 6_561  # 3 ** 8 codes
START_TOKEN = VOCAB_SIZE  # the language model's start of speech, not a sound
STOP_TOKEN = VOCAB_SIZE + 1  # the language model's end of speech, not a sound
SILENCE_TOKEN = 4_299  # what the tokenizer hears in a pause; chatterbox-tts 0.1.7, ``models/s3gen/const.py``
FRAMES_PER_TOKEN = exact_div(MEL_RATE, TOKEN_RATE)
SAMPLES_PER_TOKEN = exact_div(SAMPLE_RATE, TOKEN_RATE)
LOOKAHEAD_TOKENS = 3  # tokens to the right that the encoder reads

TOKENIZER_RATE = 16_000  # Hz, of the audio that the tokenizer and the speaker encoder hear
TOKENIZER_HOP = 160  # samples at TOKENIZER_RATE between two frames of the tokenizer's mel
TOKENIZER_MELS = 128
TOKENIZER_FRAMES_PER_TOKEN = exact_div(exact_div(TOKENIZER_RATE, TOKENIZER_HOP), TOKEN_RATE)
SPEAKER_DIM = 192
SPEAKER_MELS = 80
