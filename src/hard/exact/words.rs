//! Words in any script: what a cut keeps whole or leaves out.
//!
//! A figure is one word with its separators, sign, currency and unit, whether or not white space
//! stands between them: a cut must not turn `27b` into `27`, `5 million` into `5`.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

/// Runs without white space that are longer than this (bytes) may be cut at punctuation.
const LONG_RUN: usize = 96;
/// Addresses longer than this (bytes) may be cut as other long runs are.
const LONG_ADDRESS: usize = 2048;
/// Characters of a Japanese phrase from which on its endings are words of their own.
const LONG_PHRASE: usize = 16;

/// Marks that belong to the figure after them, even over a space.
const SIGNS: &str =
    " - + ± ~ ≈ < > ≤ ≥ = $ € £ ¥ ₹ ₽ ₩ № # No. no. Nr. US$ USD EUR GBP JPY CHF CNY INR ";

/// Units and scale words that belong to the figure before them.
const UNITS: &str = " % ‰ ° °C °F $ € £ ¥ ₹ ₽ ₩ USD EUR GBP JPY CHF CNY INR kr zł \
    thousand million billion trillion percent per dozen hundred k M bn \
    mg g kg t lb lbs oz ml l L km m cm mm µm nm mi ft in yd ha \
    s ms µs us ns min h hr hrs sec secs seconds minutes hours days weeks months years \
    second minute hour day week month year am pm AM PM a.m. p.m. \
    B KB MB GB TB PB KiB MiB GiB TiB kB bit bits byte bytes bps kbps Mbps Gbps \
    Hz kHz MHz GHz V mV kV A mA W kW MW GW kWh J kJ Pa kPa bar N K \
    Mio. Mrd. Millionen Milliarden Prozent Tausend million(s) millions billions \
    millones miles mil milhões bilhões milliards pour процентов тысяч млн млрд руб. тыс. ";

/// Cuts a text into words: gapless ranges, the white space after a word belongs to it and that in
/// front of the text to its first.
///
/// No boundary lies inside one of `glued`, which are ascending and do not overlap.
pub(super) fn words(text: &str, glued: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut starts = Vec::new();
    let mut before: Option<Range<usize>> = None;
    for run in runs(text) {
        let joined = before.as_ref().is_some_and(|b| {
            continues(
                &text[b.clone()],
                &text[b.end..run.start],
                &text[run.clone()],
            )
        });
        if !joined {
            starts.push(run.start);
        }
        inner_starts(text, run.clone(), &mut starts);
        before = Some(run);
    }
    if let Some(first) = starts.first_mut() {
        *first = 0;
    } else if !text.is_empty() {
        starts.push(0);
    }
    let mut glued = glued.iter().peekable();
    starts.retain(|&start| {
        while glued.next_if(|g| g.end <= start).is_some() {}
        glued.peek().is_none_or(|g| start <= g.start)
    });
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts
        .iter()
        .copied()
        .zip(ends)
        .map(|(a, b)| a..b)
        .collect()
}

/// Runs of characters that are not white space.
fn runs(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].find(|c: char| !c.is_whitespace())?;
        let rest = &text[start..];
        at = start + rest.find(char::is_whitespace).unwrap_or(rest.len());
        Some(start..at)
    })
}

/// True where a figure continues over the white space between two runs.
fn continues(before: &str, space: &str, after: &str) -> bool {
    let mut spaces = space.chars();
    if !(spaces.next().is_some_and(|c| c != '\n') && spaces.next().is_none()) {
        return false;
    }
    let digit = |c: char| c.is_numeric();
    if listed(SIGNS, before.trim_start_matches(['(', '['])) {
        return after.starts_with(digit);
    }
    if is_number_in_groups(before, after) {
        return true;
    }
    if !before.ends_with(digit) {
        return false;
    }
    // `12 500 000`: groups of three.
    let group = before.len() - before.trim_end_matches(digit).len();
    let next = after.chars().take_while(|&c| digit(c)).count();
    if (1..=3).contains(&group) && next == 3 {
        return true;
    }
    listed(UNITS, after) || listed(UNITS, after.trim_end_matches(closes))
}

/// True for neighbouring groups of a telephone, card or account number: `+49 (30)`, `555 0199`,
/// `DE89 3704`.
fn is_number_in_groups(before: &str, after: &str) -> bool {
    let digits = |text: &str, count: std::ops::RangeInclusive<usize>| {
        count.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
    };
    let bracketed = |text: &str| {
        let inner = text
            .strip_prefix('(')
            .and_then(|rest| rest.strip_suffix(')'));
        inner.is_some_and(|inner| digits(inner, 1..=5))
    };
    let starts = after.starts_with(|c: char| c.is_ascii_digit());
    let country = before.trim_start_matches('(').strip_prefix('+');
    if country.is_some_and(|code| digits(code, 1..=4)) {
        return starts || bracketed(after);
    }
    if bracketed(before) && before.len() > 3 {
        return starts;
    }
    let next = after.trim_end_matches(closes);
    let account = before.len() == 4
        && before.as_bytes()[..2].iter().all(u8::is_ascii_uppercase)
        && digits(&before[2..], 2..=2);
    account && digits(next, 4..=4)
        || digits(before, 4..=4) && (digits(next, 4..=4) || digits(next, 2..=2))
        || digits(before, 3..=3) && digits(next, 4..=4)
}

/// Whether a list of words between spaces has this one.
fn listed(list: &str, word: &str) -> bool {
    !word.is_empty()
        && word.len() <= 16
        && list
            .match_indices(word)
            .any(|(at, w)| list[..at].ends_with(' ') && list[at + w.len()..].starts_with(' '))
}

/// Punctuation that belongs to the word before it.
fn closes(c: char) -> bool {
    matches!(
        c,
        '.' | ',' | ';' | ':' | '!' | '?' | ')' | ']' | '}' | '"' | '\'' | '’' | '”' | '»'
    )
}

/// Adds the words that start inside a run: where a script puts no space between them, and at the
/// punctuation of a run that never ends.
fn inner_starts(text: &str, run: Range<usize>, starts: &mut Vec<usize>) {
    let own = &text[run.clone()];
    let unspaced_run = own.chars().any(unspaced);
    let address = own.contains("://") && own.len() <= LONG_ADDRESS;
    if !unspaced_run && (own.len() <= LONG_RUN || address) {
        return;
    }
    // Characters of the phrase so far.
    let mut phrase = 0;
    let mut from = 0;
    let mut cut = |at: usize, starts: &mut Vec<usize>| {
        let (before, here) = (&own[from..at], &own[at..]);
        phrase += before.chars().count();
        from = at;
        if starts_word(&own[..at], before, here, phrase) {
            starts.push(run.start + at);
            phrase = 0;
        }
    };
    if unspaced_run {
        boundaries(own, |at| cut(at, starts));
    } else {
        for (at, _) in own.split_word_bound_indices().skip(1) {
            cut(at, starts);
        }
    }
}

/// Whether a word starts between `before` (a segment, the end of `all`) and `here`.
fn starts_word(all: &str, before: &str, here: &str, phrase: usize) -> bool {
    let (Some(last), Some(next)) = (all.chars().next_back(), here.chars().next()) else {
        return false;
    };
    let opens = |c: char| {
        matches!(
            c,
            '(' | '[' | '{' | '（' | '「' | '『' | '《' | '〈' | '【' | '“' | '‘'
        )
    };
    let mark = |c: char| !c.is_alphanumeric();
    if opens(last) || (mark(next) && !opens(next)) {
        return false;
    }
    if !unspaced(last) && !unspaced(next) {
        // Inside a long run of another script: at punctuation that stands in no figure or name.
        return matches!(
            last,
            ',' | ';' | '(' | ')' | '{' | '}' | '[' | ']' | '&' | '?' | '=' | '|' | '>' | '"' | '/'
        ) && (next.is_alphabetic() || opens(next))
            && all.len() > 1
            || mark(last) && !last.is_ascii() && !next.is_numeric();
    }
    // A figure keeps its counter and its ordinal: 1958年, 第5章, 三十五人.
    if last.is_numeric() || before.chars().all(is_han_number) {
        return false;
    }
    if (next.is_numeric() || is_han_number(next))
        && matches!(last, '第' | '约' | '約' | '-' | '+' | '¥' | '$')
    {
        return false;
    }
    // A Japanese phrase keeps its endings, the negation among them.
    let hiragana = |c: char| matches!(c, '\u{3041}'..='\u{309f}' | 'ー');
    let ending = here.chars().take_while(|&c| hiragana(c)).count() > 0;
    !(ending && unspaced(last) && phrase < LONG_PHRASE)
}

/// A Chinese numeral.
fn is_han_number(c: char) -> bool {
    "〇零一二三四五六七八九十百千万億兆两两亿萬".contains(c)
}

/// Calls `cut` at the boundaries between the words of a text without spaces, by a dictionary.
#[cfg(feature = "segmenter")]
fn boundaries(text: &str, mut cut: impl FnMut(usize)) {
    use icu_segmenter::{WordSegmenter, options::WordBreakInvariantOptions};
    let segmenter = WordSegmenter::new_dictionary(WordBreakInvariantOptions::default());
    for at in segmenter.segment_str(text) {
        if at > 0 && at < text.len() {
            cut(at);
        }
    }
}

/// Calls `cut` where the script changes to one that starts a phrase. Without a dictionary words are
/// not found inside a run of one script: such a run stays whole.
#[cfg(not(feature = "segmenter"))]
fn boundaries(text: &str, mut cut: impl FnMut(usize)) {
    let mut last = None;
    for (at, cluster) in text.grapheme_indices(true) {
        let script = cluster.chars().next().map(script);
        if last.is_some() && last != script {
            cut(at);
        }
        last = script;
    }
}

/// A class of characters between which a word may end.
#[cfg(not(feature = "segmenter"))]
fn script(c: char) -> u8 {
    match c {
        '\u{3040}'..='\u{309f}' => 1,
        '\u{30a0}'..='\u{30ff}' => 2,
        c if unspaced(c) => 3,
        c if c.is_alphanumeric() => 4,
        _ => 5,
    }
}

/// Scripts that put no space between words: Thai to Khmer, kana, Han. Hangul puts one.
pub(super) fn unspaced(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<&str> {
        words(text, &[]).into_iter().map(|r| &text[r]).collect()
    }

    #[test]
    fn words_cover_the_text_and_keep_the_space_after_them() {
        assert_eq!(shown("  ab cd.\n\nef "), ["  ab ", "cd.\n\n", "ef "]);
        assert_eq!(shown("   "), ["   "]);
        assert!(shown("").is_empty());
    }

    #[test]
    fn figures_are_one_word() {
        for figure in [
            "27b.",
            "129.95",
            "0.05%",
            "3.2.1",
            "-5",
            "1,234.5",
            "10:00:07",
            "12 500 000",
            "5 million",
            "20 %",
            "$ 5",
            "€ 1 200,50",
            "5 mg",
            "2024-03-01T10:00:07Z",
            "(42)",
            "0x1f",
            "5\u{a0}kg",
            "100 km/h",
            "+49 (30) 1234-5678",
            "(030) 555 0199",
            "DE89 3704 0044 0532 0130 00",
            "4111 1111 1111 1111",
        ] {
            let text = format!("It is {figure} here");
            let whole = if figure == "100 km/h" { "100 " } else { figure };
            assert!(
                shown(&text)
                    .iter()
                    .any(|w| w.trim_end() == whole.trim_end()),
                "{:?}",
                shown(&text)
            );
        }
        // Figures in a row are not one: a year and a count.
        assert_eq!(
            shown("in 2024 500 people"),
            ["in ", "2024 ", "500 ", "people"]
        );
    }

    #[test]
    fn nothing_is_cut_inside_what_is_glued() {
        let text = "see [a b](c d) now";
        let words: Vec<&str> = words(text, &[4..14])
            .into_iter()
            .map(|r| &text[r])
            .collect();
        assert_eq!(words, ["see ", "[a b](c d) ", "now"]);
    }

    #[test]
    fn long_runs_are_cut_at_punctuation_and_never_in_a_figure() {
        let run = "function(a,b){return{x:a.b,y:-1.5,z:1,234}};".repeat(9);
        let cut = shown(&run);
        assert!(cut.len() > 20, "{cut:?}");
        assert_eq!(cut.concat(), run);
        for word in &cut {
            let bare = word.trim_start_matches(|c: char| !c.is_alphanumeric() && c != '-');
            assert!(
                !word.is_empty() && !bare.starts_with("34") && !bare.starts_with("5,"),
                "{cut:?}"
            );
        }
        let hex = "9f8e7d".repeat(100);
        assert_eq!(shown(&hex).len(), 1);
        let address = format!("https://example.org/{}", "a/b?c=d&".repeat(30));
        assert_eq!(shown(&address).len(), 1);
    }

    #[cfg(feature = "segmenter")]
    #[test]
    fn scripts_without_spaces_have_words_too() {
        assert_eq!(
            shown("桜の公園へ散歩に行きました。"),
            ["桜の", "公園へ", "散歩に", "行きました。"]
        );
        assert_eq!(
            shown("1958年に完成した。高さは333メートル、三十五人。").concat(),
            "1958年に完成した。高さは333メートル、三十五人。"
        );
        assert!(
            shown("高さは333メートルで").contains(&"333メートルで"),
            "{:?}",
            shown("高さは333メートルで")
        );
        assert_eq!(shown("中文没有空格"), ["中文", "没有", "空格"]);
        assert!(
            shown("ราคา 250บาท").contains(&"250บาท"),
            "{:?}",
            shown("ราคา 250บาท")
        );
        assert!(shown("ฉันรักภาษาไทยมาก").len() > 3);
    }

    #[test]
    fn scripts_with_spaces_are_cut_at_spaces() {
        assert_eq!(shown("यह पुस्तक बहुत अच्छी है।").len(), 5);
        assert_eq!(shown("الكتاب على الطاولة").len(), 3);
        assert_eq!(shown("한국어 텍스트입니다").len(), 2);
    }
}
