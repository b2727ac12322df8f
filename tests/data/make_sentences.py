"""Makes sentences.jsonl: texts and the sentences that `nltk.sent_tokenize` finds in them.

    python make_sentences.py sentences.jsonl      # needs nltk; the parameters are those of src/text/punkt_english
"""
import json
import random
import sys
import tempfile
from pathlib import Path

import nltk

here = Path(__file__).resolve().parent
folder = tempfile.TemporaryDirectory()
english = Path(folder.name) / "tokenizers/punkt_tab/english"
english.mkdir(parents=True)
for file in (here / "../../src/text/punkt_english").glob("*.t*"):
    (english / file.name).write_bytes(file.read_bytes())
nltk.data.path = [folder.name]

TEXTS = [
    "",
    " ",
    "\n\n",
    "Hello.",
    " Leading space. And more.",
    "\nA new line. First.",
    "Dr. Smith went to Washington, D.C. He met Mr. Jones of Acme Inc. on Jan. 5. They talked.",
    "J. S. Bach was born in 1685. J. R. R. Tolkien was not. I. Newton either.",
    "The U.S. The U.S. government. In the U.S. However, it rained. N.Y. police.",
    "It cost $3.50. He paid 5. Credit was 5. credit. Version 2.0.1. Next. 1. First item 2. Second item",
    "He said \"Stop.\" Then he left. (He did.) She said 'No!' and went. “Why?” he asked. ‘Go.’ «Oui.» Non.",
    "Wait... What? Really?! Yes!!! No . . . maybe. . . . Or not. . x",
    "First sentence.Second sentence.Third.",
    "See http://example.com/a.b?c=d. Mail a.b@c.org. Then foo.bar() and x.y.z.",
    "def f(x):\n    return x.y  # Done. Next\n\nclass A: pass\n",
    "Ends with a dash.-- Then more. \"Quote.\"-- And. (x.)--y",
    "Tabs.\tAnd.\r\nCarriage.\x0bVertical.\x0cForm. Non-breaking.\u00a0Here.\u3000Ideographic.\u2028Line. \x1cSeparator. \x1c",
    "東京は日本の首都です。人口は多い。 It ends. 日. 本",
    "Привет. Как дела? Хорошо! А. С. Пушкин родился в 1799 г. в Москве.",
    "¿Qué tal? ¡Bien! El Sr. García llegó. Él es. Año 1999.",
    "Er kam am 5. Mai. Das ist z. B. gut. Die Fa. Müller. Usw. Ende.",
    "😀. 😀! 👩‍👩‍👧? Ok. 🇩🇪.",
    "İstanbul. ΟΔΟΣ. ß. ǅ. Ⅷ. é. x",
    "He is a co-op. member of well-co. The end. non-U.S. citizens. X-Inc. Stock.",
    "a.m. and p.m. The train left at 5 p.m. It was late. At 6 a.m. he slept.",
    "B. Smith and b. smith and I. Toussie.",
    "He has a Ph.D. in physics. Ph.D. Students. M.B.A. Programs",
    "One.) Two.] Three.} \"Four.\") Five.'\" Six",
    ") Starts with. ) closing. ] more.",
    "?!?! ... !!! .",
    ".a .b .c",
    "Item 1,000. Item -2.5. Item .5. Item 4२. ४. x",
    "etc. etc. Etc. and so on. vs. them. No. 5. no. No.",
    "x" * 300 + ". " + "y" * 300 + ".",
]

WORDS = (
    "Mr. Dr. U.S. e.g. J. B. Bach No. 5 5. 3.14 1,000. vs. Inc. The the It He he However A. a. I p.m. St. etc. Jan. sales. "
    "Smith Stewart é. 日. 日本語。 😀 4. ४. x-co. ... Hello world end Also Credit credit coverage Coverage In So Despite NASA"
).split()
MARKS = list(".?!,;:-'\"()[]“”‘’«»") + ["..", "...", ". . .", "--", "?!", "!!!", "\n", "\n\n", "\t", "\u00a0", "\x1c", ".)", ".\"", ".”"]

random.seed(17)
for _ in range(1200):
    text = ""
    for _ in range(random.randint(2, 16)):
        text += random.choice(WORDS if random.random() < 0.55 else MARKS) + random.choice(["", " "])
    TEXTS.append(text)

with open(sys.argv[1], "w") as out:
    for text in TEXTS:
        row = {"text": text, "sentences": nltk.sent_tokenize(text)}
        out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
