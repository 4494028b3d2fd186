"""How many guesses a password stands, by zxcvbn (D. Wheeler, USENIX Security 2016) in its Rust form, which needs 0.2 ms."""

from collections.abc import Sequence

from zxcvbn_rs_py import zxcvbn

CHARS_READ_MAX = 64
"""Its time grows with the square of the length; so many characters that are hard to guess need no more."""

_REASONS = {
    "ThisIsATop10Password": ("common", "is among the ten passwords that are tried first"),
    "ThisIsATop100Password": ("common", "is among the hundred passwords that are tried first"),
    "ThisIsACommonPassword": ("common", "is a password that many people use"),
    "ThisIsSimilarToACommonlyUsedPassword": ("common", "is almost a password that many people use"),
    "AWordByItselfIsEasyToGuess": ("word", "is a single word"),
    "NamesAndSurnamesByThemselvesAreEasyToGuess": ("name", "is a name"),
    "CommonNamesAndSurnamesAreEasyToGuess": ("name", "is a common name"),
    "StraightRowsOfKeysAreEasyToGuess": ("keyboard", "is a row of keys"),
    "ShortKeyboardPatternsAreEasyToGuess": ("keyboard", "is a short pattern of keys"),
    "RepeatsLikeAaaAreEasyToGuess": ("repeats", "repeats a character"),
    "RepeatsLikeAbcAbcAreOnlySlightlyHarderToGuess": ("repeats", "repeats itself"),
    "SequencesLikeAbcAreEasyToGuess": ("sequence", "is a sequence such as abc or 6543"),
    "RecentYearsAreEasyToGuess": ("date", "is a year"),
    "DatesAreOftenEasyToGuess": ("date", "is a date"),
}
_ADVICE = {
    "AddAnotherWordOrTwo": ("weak", "is too easy to guess: add another word or two"),
    "UseAFewWordsAvoidCommonPhrases": ("weak", "is too easy to guess: use a few words that do not belong together"),
    "CapitalizationDoesntHelpVeryMuch": ("capitals", "gains little by a capital letter"),
    "AllUppercaseIsAlmostAsEasyToGuessAsAllLowercase": ("capitals", "gains little by being all in capitals"),
    "ReversedWordsArentMuchHarderToGuess": ("reversed", "gains little by a word read backwards"),
    "PredictableSubstitutionsDontHelpVeryMuch": ("substitutions", "gains little by @ for a or 0 for o"),
}
_WEAK = ("weak", "is too easy to guess")


class GuessEstimate:
    """An Estimate: passwords below `score_min` are refused. Scores go from 0 (under 10³ guesses) by 10⁶, 10⁸ and 10¹⁰ to 4."""

    def __init__(self, score_min: int) -> None:
        self._score_min = score_min
        if score_min:
            # The word lists are read at the first use: 20 ms that no request should wait for.
            zxcvbn("correct horse", [])

    def __call__(self, password: str, words: Sequence[str]) -> Sequence[tuple[str, str]]:
        if not self._score_min:
            return ()
        found = zxcvbn(password[:CHARS_READ_MAX], list(words))
        if int(found.score) >= self._score_min:
            return ()
        told = []
        if found.feedback is not None:
            named = [_name(found.feedback.warning), *(_name(each) for each in found.feedback.suggestions)]
            told = [({**_REASONS, **_ADVICE})[name] for name in named if name in _REASONS or name in _ADVICE]
        return told or [_WEAK]


def _name(member: object) -> str:
    # Its str() is an English sentence.
    return repr(member).rpartition(".")[2]
