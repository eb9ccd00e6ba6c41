"""``edge-imputer synthesize``: speech, near misses and noises made by programs."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SynthesisError
from .synthesis_steps import (
    ClipProgress,
    cast_voices,
    per_engine,
    phrases_to_say,
    print_texts,
    report,
)

app = typer.Typer(
    help="""Make speech, near-miss phrases and noises to train and test with.

    Speech comes from the synthesisers that are installed: espeak-ng, flite, festival, piper,
    Kokoro; `edge-imputer synthesize voices` lists them and says how to install the others.""",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


BABBLE_VOICES = 24  # of each engine


class SplitName(str, Enum):
    """What is kept apart between splits."""

    voice = "voice"
    engine = "engine"
    none = "none"


class FormatName(str, Enum):
    """Audio files."""

    ogg = "ogg"
    flac = "flac"
    wav = "wav"


EngineOption = Annotated[
    list[str] | None,
    typer.Option("--engine", "-e", help="Engine to use; repeatable. All installed if unset."),
]
PiperOption = Annotated[
    Path | None, typer.Option(help="Folder of Piper's voices; $PIPER_VOICES if unset.")
]
KokoroOption = Annotated[
    Path | None, typer.Option(help="Folder of Kokoro's voices; $KOKORO_VOICES if unset.")
]
NotInOption = Annotated[
    list[Path] | None,
    typer.Option(help="No voice, and no person, that this corpus folder has; repeatable."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Decides everything that is drawn.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Clips made at once; the number of cores if unset.")
]
FormatOption = Annotated[
    FormatName, typer.Option("--format", help="ogg (Opus) is small, flac and wav are exact.")
]


@app.command()
def voices(
    engine: EngineOption = None,
    piper_voices: PiperOption = None,
    kokoro_voices: KokoroOption = None,
    all_of_them: Annotated[
        bool, typer.Option("--all", help="Every voice, not the number of them.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a program to read.")
    ] = False,
) -> None:
    """List engines and their English voices, and how to install what is missing.

    Examples:

    `edge-imputer synthesize voices`

    `edge-imputer synthesize voices --engine espeak --all`
    """
    import msgspec

    from edge_imputer.train.synthesis import ENGINES
    from edge_imputer.train.synthesis.engines import make_engines

    engines = make_engines(piper_voices=piper_voices, kokoro_voices=kokoro_voices)
    for name in engine or []:
        if name not in engines:
            raise SynthesisError(f"expected one of the engines {', '.join(ENGINES)}, got {name!r}")
    listed = {name: engines[name] for name in engine or engines}
    if as_json:
        found = [
            {"engine": name, **msgspec.to_builtins(e.available()), "voices": e.voices()}
            for name, e in listed.items()
        ]
        print(msgspec.json.encode(found).decode())
        return
    for name, one in listed.items():
        state = one.available()
        known = one.voices()
        how = f"{len(known)} voices" if state.ok else f"missing: {state.reason}; {state.install}"
        print(f"{name:9} {how}")
        for voice in known if all_of_them else []:
            facts = ", ".join(filter(None, (voice.language, voice.gender, voice.quality)))
            print(f"  {voice.speaker:36} {facts}")


@app.command()
def speech(
    out: Annotated[Path, typer.Argument(help="Corpus folder to write, or to go on with.")],
    text: Annotated[list[str] | None, typer.Argument(help="Words or phrases to say.")] = None,
    texts: Annotated[
        list[Path] | None, typer.Option(help="File with a text a line; repeatable.")
    ] = None,
    sentence_files: Annotated[
        list[Path] | None,
        typer.Option("--sentences", help="File with a sentence a line; repeatable."),
    ] = None,
    digits: Annotated[bool, typer.Option("--digits", help="Also zero to nine.")] = False,
    speech_commands: Annotated[
        bool, typer.Option("--speech-commands", help="Also the 35 words of Speech Commands.")
    ] = False,
    commands: Annotated[
        int, typer.Option(min=0, help="Also so many sentences: voice commands and others.")
    ] = 0,
    n_near_misses: Annotated[
        int,
        typer.Option(
            "--near-misses", min=0, help="Also so many phrases that sound like each TEXT."
        ),
    ] = 0,
    clips_each: Annotated[
        int, typer.Option(min=1, help="Voices that say each sentence and each near miss.")
    ] = 2,
    engine: EngineOption = None,
    n_voices: Annotated[
        list[str] | None,
        typer.Option("--voices", help="Voices of each engine: N or ENGINE=N; repeatable."),
    ] = None,
    voice: Annotated[
        list[str] | None, typer.Option(help="Only voices like this: espeak:en-us*; repeatable.")
    ] = None,
    skip_voice: Annotated[
        list[str] | None, typer.Option(help="No voice like this; repeatable.")
    ] = None,
    not_in: NotInOption = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(help="Takes a voice, each at another rate and pitch: N or ENGINE=N."),
    ] = None,
    split_by: Annotated[
        SplitName, typer.Option(help="What no two splits share; none deals single clips.")
    ] = SplitName.voice,
    valid: Annotated[
        list[str] | None, typer.Option(help="Engine or voices for valid; repeatable.")
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="Engine or voices for test, or * for all; repeatable."),
    ] = None,
    valid_share: Annotated[float, typer.Option(help="Share of the other voices.")] = 0.1,
    test_share: Annotated[float, typer.Option(help="Share of the other voices.")] = 0.1,
    rate: Annotated[
        tuple[float, float], typer.Option(help="Range of factors on the speaking rate.")
    ] = (0.8, 1.25),
    pitch: Annotated[tuple[float, float], typer.Option(help="Range of pitches, semitones.")] = (
        -2.0,
        2.0,
    ),
    seed: SeedOption = 0,
    form: FormatOption = FormatName.flac,
    workers: WorkersOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make a clip of each engine, say how long it takes.")
    ] = False,
    piper_voices: PiperOption = None,
    kokoro_voices: KokoroOption = None,
) -> None:
    """Synthesise a corpus: 16 kHz clips and a manifest. Run again, it goes on where it stopped.

    Every clip is cut to its speech, set to a random level, padded, laid over very low noise;
    clips that are silent, clipped or of an implausible length are made anew, or left out and
    listed in `dropped.jsonl`. No voice, and no person, is in two splits. Every voice says every
    text of `--texts`; a line of `--sentences` is said by `--clips-each` voices of one split.

    Examples:

    `edge-imputer synthesize speech build/words yes no stop --voices 20`

    `edge-imputer synthesize speech build/digits --digits --split-by engine --test flite`

    `edge-imputer synthesize speech build/wake "hey computer" --near-misses 50 --commands 500`

    `edge-imputer synthesize speech build/home --sentences texts.txt --clips-each 1`
    """
    from edge_imputer.train.synthesis import (
        Dress,
        Settings,
        SplitRule,
        make_plan,
        open_engines,
        synthesize,
    )

    phrases = phrases_to_say(
        text,
        texts,
        sentence_files,
        digits,
        speech_commands,
        commands,
        n_near_misses,
        clips_each,
        seed,
    )
    engines = open_engines(engine, piper_voices=piper_voices, kokoro_voices=kokoro_voices)
    counts, takes = (
        per_engine("--voices", n_voices, engines),
        per_engine("--variants", variants, engines),
    )
    cast = cast_voices(engines, counts, not_in, seed, only=voice or [], skip=skip_voice or [])
    rule = SplitRule(split_by.value, tuple(valid or ()), tuple(test or ()), valid_share, test_share)
    jobs = make_plan(phrases, cast, rule, seed=seed, variants=takes, suffix=form.value)
    with ClipProgress(len(jobs), go_on=not dry_run) as progress:
        made = synthesize(
            jobs,
            engines,
            out,
            settings=Settings(seed=seed, dress=Dress(rate=rate, pitch=pitch)),
            workers=workers or os.cpu_count() or 1,
            voices_apart=split_by != SplitName.none,
            on_estimate=progress.estimate,
            on_clip=progress.clip,
        )
    report(made, out)


@app.command()
def texts(
    n: Annotated[int, typer.Argument(min=0, help="How many.")] = 0,
    without: Annotated[
        list[Path] | None,
        typer.Option(help="File of words or phrases that no sentence may have; repeatable."),
    ] = None,
    not_in: Annotated[
        list[Path] | None,
        typer.Option(help="File of sentences that are not wanted again; repeatable."),
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(help="Text grammar, or one in JSGF (.jsgf); that of the package if unset."),
    ] = None,
    jsgf: Annotated[
        Path | None, typer.Option(help="File to write the text grammar to, in JSGF.")
    ] = None,
    words: Annotated[
        Path | None, typer.Option(help="File to write every word of the grammar to, one a line.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Print sentences of a grammar, each once: voice commands, questions, stories, or your own.

    What is written with `--jsgf` or `--words` says the same to a decoder: `--language`.

    Examples:

    `edge-imputer synthesize texts 2000 --seed 2 --not-in train.txt > test.txt`

    `edge-imputer synthesize texts 2000 --grammar docs/examples/coffee.jsgf > orders.txt`

    `edge-imputer synthesize texts --jsgf texts.jsgf --words words.txt`
    """
    print_texts(n, without or [], not_in or [], grammar, jsgf, words, seed)


@app.command()
def near_misses(
    phrase: Annotated[str, typer.Argument(help="The keyword or wake phrase.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 50,
    words: Annotated[
        list[Path] | None,
        typer.Option(help="File of words to choose from, in place of the shipped; repeatable."),
    ] = None,
    nonsense: Annotated[bool, typer.Option(help="Also words that do not exist.")] = True,
    containing: Annotated[
        bool, typer.Option("--containing", help="Also phrases that hold the keyword whole.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="The phrases alone, a line each, as for --texts.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a program to read.")
    ] = False,
) -> None:
    """Find phrases that sound almost like a keyword, the nearest first.

    Distances are per phone of the keyword: 0 would be a homophone, 0.6 is unrelated. Needs eSpeak
    NG. Speech of them comes from `edge-imputer synthesize speech --near-misses N`.

    Examples:

    `edge-imputer synthesize near-misses "hey computer" -n 50`

    `edge-imputer synthesize near-misses marvin --words /usr/share/dict/words --plain`
    """
    import msgspec

    from edge_imputer.train.synthesis import Lexicon, near_misses, read_texts

    lexicon = Lexicon.of(word for path in words for word in read_texts(path)) if words else None
    found = near_misses(phrase, n, lexicon=lexicon, nonsense=nonsense, containing=containing)
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    for miss in found:
        if plain:
            print(miss.text)
        else:
            print(f"{miss.distance:.3f}  {miss.text:28} {miss.kind:13} {' '.join(miss.phones)}")


@app.command()
def noises(
    out: Annotated[Path, typer.Argument(help="Corpus folder to write, or to go on with.")],
    hours: Annotated[float, typer.Option(help="Hours of noise, over all splits.")] = 1.0,
    kinds: Annotated[
        list[str] | None,
        typer.Option(help="Kinds of a split, as test=rain,beeps; replaces all the defaults."),
    ] = None,
    speech: Annotated[
        Path | None,
        typer.Option(help="Corpus folder whose speech makes the babble; synthesisers if unset."),
    ] = None,
    engine: EngineOption = None,
    not_in: NotInOption = None,
    clip_s: Annotated[float, typer.Option(help="Length of a clip, seconds.")] = 10.0,
    seed: SeedOption = 0,
    form: FormatOption = FormatName.flac,
    workers: WorkersOption = None,
) -> None:
    """Generate noises, of other kinds for training than for validation and for test.

    train: steady, hum, fan, clicks, door, chords, percussion, babble;
    valid: wind, ticking; test: rain, dishes, beeps, melody. Hours: 80, 10 and 10 %.

    Examples:

    `edge-imputer synthesize noises build/noises --hours 0.5`

    `edge-imputer synthesize noises build/noises --kinds train=hum,fan --kinds test=rain`
    """
    from edge_imputer.train.synthesis import (
        NoisePlan,
        corpus_talkers,
        engine_talkers,
        open_engines,
        parse_kinds,
        synthesize_noises,
    )

    plan = NoisePlan(hours, parse_kinds(kinds or []), clip_s, seed, form.value)
    talkers = None
    if any("babble" in of_split for of_split in plan.kinds.values()):
        if speech is not None:
            talkers = corpus_talkers(speech)
        else:
            engines = open_engines(engine)
            counts = dict.fromkeys([one.name for one in engines], BABBLE_VOICES)
            talkers = engine_talkers(engines, cast_voices(engines, counts, not_in, seed), seed=seed)
    with ClipProgress(len(plan.rows()), go_on=True) as progress:
        rows = synthesize_noises(
            plan,
            out,
            talkers=talkers,
            workers=workers or os.cpu_count() or 1,
            on_clip=progress.done,
        )
    for split in ("train", "valid", "test"):
        of_split = [row for row in rows if row.split == split]
        names = ", ".join(sorted({row.kind for row in of_split}))
        print(f"{split}: {sum(row.duration_s for row in of_split) / 3600:.2f} h of {names or '-'}")
