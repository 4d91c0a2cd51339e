"""Public corpora of emotional speech: how their files are named, what the codes mean, and their licences."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from kibun.training.corpora.public_labels import Labels, crema_d_labels, esd_labels, msp_podcast_labels, nemo_labels


@dataclasses.dataclass(frozen=True)
class PublicCorpus:
    """One corpus. The codes are those of the pattern's groups of the same name."""

    name: str
    title: str
    license: str  # an SPDX expression, or LicenseRef-… where there is none
    homepage: str
    example: str  # where one of its files lies, for whoever named the wrong folder
    utterances: int | None  # in the whole corpus, where that is one number
    language: str | None
    pattern: str  # of a path without suffix, relative to the folder that it lies in
    emotions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    intensities: Mapping[str, str] = dataclasses.field(default_factory=dict)
    genders: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of speakers
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of sentences
    said: str = "{}"  # what is said, around that sentence
    labels: Callable[[Path], Labels] | None = None  # reads the label files in the corpus' folder


_FEMALE_MALE = ("female", "male")
PUBLIC: Mapping[str, PublicCorpus] = {
    corpus.name: corpus
    for corpus in (
        PublicCorpus(
            name="ravdess",
            title="RAVDESS",
            license="CC-BY-NC-SA-4.0",
            homepage="https://zenodo.org/records/1188976",
            example="Actor_01/03-01-06-01-02-01-01.wav",
            utterances=1440,
            language="en",
            # modality, channel (01: speech; 02, song, is none), emotion, intensity, statement, repetition, actor
            pattern=r"0[13]-01-(?P<emotion>0[1-8])-(?P<intensity>0[12])-(?P<sentence>0[12])-0[12]"
            r"-(?P<speaker>0[1-9]|1\d|2[0-4])",
            emotions={
                "01": "neutral",
                "02": "calm",
                "03": "happy",
                "04": "sad",
                "05": "angry",
                "06": "fearful",
                "07": "disgusted",
                "08": "surprised",
            },
            intensities={"01": "normal", "02": "strong"},
            genders={f"{actor:02d}": _FEMALE_MALE[actor % 2] for actor in range(1, 25)},
            texts={"01": "kids are talking by the door", "02": "dogs are sitting by the door"},
        ),
        PublicCorpus(
            name="nemo",
            title="nEMO",
            license="CC-BY-NC-SA-4.0",
            homepage="https://github.com/amu-cai/nEMO",
            example="samples/SM0_anger_1.wav",
            utterances=4481,
            language="pl",
            pattern=r"(?P<speaker>[A-Z]{2}\d)_(?P<emotion>anger|fear|happiness|neutral|sadness|surprised)_\d+",
            emotions={
                "anger": "angry",
                "fear": "fearful",
                "happiness": "happy",
                "neutral": "neutral",
                "sadness": "sad",
                "surprised": "surprised",
            },
            genders={
                **dict.fromkeys(("EB0", "IC0", "KD0", "MK0"), "female"),
                **dict.fromkeys(("KS0", "MP0", "SM0", "TP0", "WR0"), "male"),
            },
            labels=nemo_labels,
        ),
        PublicCorpus(
            name="crema-d",
            title="CREMA-D",
            license="ODbL-1.0",
            homepage="https://github.com/CheyneyComputerScience/CREMA-D",
            example="AudioWAV/1001_DFA_ANG_XX.wav",
            utterances=7442,
            language="en",
            # One published file, 1040_ITH_SAD_X, has a single X.
            pattern=r"(?P<speaker>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)"
            r"_(?P<intensity>LO|MD|HI|XX?)",
            emotions={
                "ang": "angry",
                "dis": "disgusted",
                "fea": "fearful",
                "hap": "happy",
                "neu": "neutral",
                "sad": "sad",
            },
            intensities={"lo": "low", "md": "medium", "hi": "high", "xx": "unspecified", "x": "unspecified"},
            texts={
                "ieo": "it's eleven o'clock",
                "tie": "that is exactly what happened",
                "iom": "i'm on my way to the meeting",
                "iww": "i wonder what this is about",
                "tai": "the airplane is almost full",
                "mti": "maybe tomorrow it will be cold",
                "iwl": "i would like a new alarm clock",
                "ith": "i think i have a doctor's appointment",
                "dfa": "don't forget a jacket",
                "its": "i think i've seen this before",
                "tsi": "the surface is slick",
                "wsi": "we'll stop in a couple of minutes",
            },
            labels=crema_d_labels,
        ),
        PublicCorpus(
            name="emodb",
            title="EmoDB",
            license="LicenseRef-EmoDB-not-stated",
            homepage="http://emodb.bilderbar.info",
            example="wav/03a01Fa.wav",
            utterances=535,
            language="de",
            pattern=r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[WLEAFTN])[a-z]?",
            emotions={  # by the German word: Wut, Langeweile, Ekel, Angst, Freude, Trauer
                "w": "angry",
                "l": "bored",
                "e": "disgusted",
                "a": "fearful",
                "f": "happy",
                "t": "sad",
                "n": "neutral",
            },
            genders={
                **dict.fromkeys(("03", "10", "11", "12", "15"), "male"),
                **dict.fromkeys(("08", "09", "13", "14", "16"), "female"),
            },
            texts={
                "a01": "der lappen liegt auf dem eisschrank",
                "a02": "das will sie am mittwoch abgeben",
                "a04": "heute abend könnte ich es ihm sagen",
                "a05": "das schwarze stück papier befindet sich da oben neben dem holzstück",
                "a07": "in sieben stunden wird es soweit sein",
                "b01": "was sind denn das für tüten die da unter dem tisch stehen",
                "b02": "sie haben es gerade hochgetragen und jetzt gehen sie wieder runter",
                "b03": "an den wochenenden bin ich jetzt immer nach hause gefahren und habe agnes besucht",
                "b09": "ich will das eben wegbringen und dann mit karl was trinken gehen",
                "b10": "die wird auf dem platz sein wo wir sie immer hinlegen",
            },
        ),
        PublicCorpus(
            name="tess",
            title="TESS",
            license="CC-BY-NC-ND-4.0",
            homepage="https://doi.org/10.5683/SP2/E8H2MF",
            example="OAF_angry/OAF_back_angry.wav",
            utterances=2800,
            language="en",
            # One published file, OA_bite_neutral, lacks its F.
            pattern=r"(?P<speaker>OA|YA)F?_(?P<word>[a-z]+)_(?P<emotion>angry|disgust|fear|happy|neutral|ps|sad)",
            emotions={
                "angry": "angry",
                "disgust": "disgusted",
                "fear": "fearful",
                "happy": "happy",
                "neutral": "neutral",
                "ps": "surprised",  # "pleasant surprise"
                "sad": "sad",
            },
            genders={"OA": "female", "YA": "female"},
            said="say the word {}",
        ),
        PublicCorpus(
            name="esd",
            title="ESD",
            license="LicenseRef-ESD-research-only",
            homepage="https://github.com/HLTSingapore/Emotional-Speech-Data",
            example="0011/Angry/0011_000351.wav",
            utterances=35_000,
            language=None,  # of each speaker: see esd_labels
            pattern=r"(?P<emotion>Angry|Happy|Neutral|Sad|Surprise)/(?:(?:train|evaluation|test)/)?"
            r"(?P<speaker>00(?:0[1-9]|1\d|20))_\d{6}",
            emotions={
                "angry": "angry",
                "happy": "happy",
                "neutral": "neutral",
                "sad": "sad",
                "surprise": "surprised",
            },
            labels=esd_labels,
        ),
        PublicCorpus(
            name="msp-podcast",
            title="MSP-Podcast",
            license="LicenseRef-MSP-Podcast-academic",
            homepage="https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html",
            example="Audios/MSP-PODCAST_0001_0008.wav",
            utterances=None,  # it grows
            language="en",
            # The numbers of podcast and segment stand in for a speaker until the labels name one.
            pattern=r"MSP-PODCAST_(?P<speaker>[0-9]+(?:_[0-9]+)+)",
            labels=msp_podcast_labels,
        ),
    )
}
