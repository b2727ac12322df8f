//! One self-contained page that shows what was kept, what was dropped, and the surprisal of each.

use std::fmt::Write;

use crate::hard::Piece;

use super::marked::visible;

/// What the page shows.
pub struct Page<'a> {
    /// Tokens of the original.
    pub before: usize,
    /// Tokens of the result.
    pub after: usize,
    /// Wall time of the compression.
    pub seconds: f64,
    /// Tokens of the original per second.
    pub tokens_per_second: f64,
    /// The model's file or folder name.
    pub model: &'a str,
    /// The original in order.
    pub pieces: &'a [Piece],
}

/// Steps of the shading, of one nat each; the last one has everything above it.
const SHADES: usize = 11;

/// The whole page. It loads nothing from anywhere and runs no script.
pub fn render(shown: &Page<'_>) -> String {
    let mut page = String::with_capacity(8192);
    page.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.push_str("<title>prefold: ");
    let _ = write!(page, "{} to {} tokens", shown.before, shown.after);
    page.push_str("</title>\n<style>\n");
    page.push_str(include_str!("page.css"));
    for shade in 1..SHADES {
        let _ = writeln!(
            page,
            ".s{shade} {{ background: rgb(var(--hot) / {:.2}); }}",
            0.055 * shade as f64
        );
    }
    page.push_str("</style>\n</head>\n<body>\n<header>\n<h1>prefold</h1>\n<p class=\"model\">");
    page.push_str("compressed by ");
    escape(&mut page, shown.model);
    page.push_str("</p>\n<dl>\n");
    let share = 100.0 * shown.after as f64 / shown.before.max(1) as f64;
    let ratio = shown.before as f64 / shown.after.max(1) as f64;
    for (name, value) in [
        ("tokens before", shown.before.to_string()),
        ("tokens after", shown.after.to_string()),
        ("kept", format!("{share:.1}%")),
        ("ratio", format!("{ratio:.1}x")),
        ("seconds", format!("{:.2}", shown.seconds)),
        ("tokens/s", format!("{:.0}", shown.tokens_per_second)),
    ] {
        let _ = write!(page, "<div><dt>{name}</dt><dd>");
        escape(&mut page, &value);
        page.push_str("</dd></div>\n");
    }
    let _ = writeln!(
        page,
        "</dl>\n<div class=\"bar\"><i style=\"width: {:.1}%\"></i></div>",
        share.min(100.0)
    );
    page.push_str("<div class=\"legend\">\n<span>expected<span class=\"ramp\">");
    for shade in 0..SHADES {
        let _ = write!(page, "<i class=\"s{shade}\"></i>");
    }
    let _ = writeln!(
        page,
        "</span>surprisal (0 to {}+ nats a token)</span>",
        SHADES - 1
    );
    page.push_str("<span>kept, <del>dropped</del></span>\n");
    page.push_str("<label><input type=\"checkbox\" id=\"hide\"> only what was kept</label>\n");
    page.push_str("<label><input type=\"checkbox\" id=\"plain\"> no shading</label>\n");
    page.push_str("</div>\n</header>\n<main>\n<pre>");
    // A line break right after <pre> is swallowed, so one more goes in front of the text.
    page.push('\n');
    for piece in shown.pieces {
        span(&mut page, piece);
    }
    page.push_str("</pre>\n</main>\n<footer>");
    page.push_str("Point at a word for its surprisal in nats.</footer>\n</body>\n</html>\n");
    page
}

/// One piece: shaded where it was scored, struck where it was dropped, bare where neither.
fn span(page: &mut String, piece: &Piece) {
    let tag = if piece.kept { "span" } else { "del" };
    // The cast saturates, so that an infinite surprisal shows as the greatest.
    let shade = piece.nll.map(|nll| match nll.max(0.0).round() as usize {
        shade if shade < SHADES => shade,
        _ => SHADES - 1,
    });
    if piece.kept && shade.is_none() {
        return escape(page, &piece.text);
    }
    let _ = write!(page, "<{tag}");
    if let Some(shade) = shade.filter(|&shade| shade > 0) {
        let _ = write!(page, " class=\"s{shade}\"");
    }
    if let Some(nll) = piece.nll {
        let _ = write!(page, " title=\"{nll:.2}\"");
    }
    page.push('>');
    escape(page, &piece.text);
    let _ = write!(page, "</{tag}>");
}

/// `text` as HTML text or attribute value.
fn escape(page: &mut String, text: &str) {
    for c in text.chars().filter_map(visible) {
        match c {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            c => page.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(pieces: &[Piece]) -> String {
        render(&Page {
            before: 10,
            after: 5,
            seconds: 0.5,
            tokens_per_second: 20.0,
            model: "a<b>.gguf",
            pieces,
        })
    }

    fn body(pieces: &[Piece]) -> String {
        let page = page(pieces);
        let (_, rest) = page.split_once("<pre>\n").unwrap();
        rest.split_once("</pre>").unwrap().0.into()
    }

    fn piece(text: &str, kept: bool, nll: Option<f32>) -> Piece {
        Piece {
            text: text.into(),
            kept,
            nll,
        }
    }

    #[test]
    fn nothing_in_a_prompt_becomes_markup() {
        let nasty = "</pre><script>alert(\"x\" + '&')</script>\u{1b}\0\r\n";
        assert_eq!(
            body(&[piece(nasty, true, None)]),
            "&lt;/pre&gt;&lt;script&gt;alert(&quot;x&quot; + &#39;&amp;&#39;)&lt;/script&gt;␛␀\n"
        );
        let page = page(&[]);
        assert!(page.contains("a&lt;b&gt;.gguf"));
    }

    #[test]
    fn dropped_is_struck_and_surprisal_is_shaded() {
        let pieces = [
            piece("a", true, Some(0.2)),
            piece("b", false, Some(3.4)),
            piece("c", true, Some(99.0)),
            piece("d", true, Some(f32::INFINITY)),
            piece("e", false, None),
        ];
        assert_eq!(
            body(&pieces),
            "<span title=\"0.20\">a</span><del class=\"s3\" title=\"3.40\">b</del>\
             <span class=\"s10\" title=\"99.00\">c</span><span class=\"s10\" title=\"inf\">d</span>\
             <del>e</del>"
        );
    }

    #[test]
    fn the_page_needs_nothing_from_outside() {
        let page = page(&[piece("x", true, None)]);
        for outside in [
            "http:", "https:", "url(", "@import", "<script", "<link", "src=",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
