//! `context_budget`: arithmetic on the target of the context level, such as `+100` or `*1.5+20`.
//!
//! The reference evaluates the string as code; here it is a list of operators and numbers with the
//! usual precedence, and nothing else.

use crate::error::{Error, Result};

/// The value of `target` followed by the operators and numbers of `expression`.
///
/// Operators: `+ - * /`, with `*` and `/` binding tighter. An empty expression leaves the target as
/// it is; anything else is [`Error::Input`].
pub fn evaluate(target: f64, expression: &str) -> Result<f64> {
    let bad = |reason: &str| {
        Error::input(
            format!("context_budget {expression:?}"),
            format!("{reason}; write an operator and a number, as in +100 or *1.5"),
        )
    };
    let mut rest = expression.trim();
    let (mut sum, mut term) = (0.0, target);
    while let Some(operator) = rest.chars().next() {
        if !matches!(operator, '+' | '-' | '*' | '/') {
            return Err(bad("expected one of + - * /"));
        }
        rest = rest[1..].trim_start();
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| bad("expected a number"))?;
        rest = rest[end..].trim_start();
        match operator {
            '*' => term *= number,
            '/' if number == 0.0 => return Err(bad("division by zero")),
            '/' => term /= number,
            sign => {
                sum += term;
                term = if sign == '+' { number } else { -number };
            }
        }
    }
    Ok(sum + term)
}

#[cfg(test)]
mod tests {
    use super::evaluate;

    #[test]
    fn follows_precedence() {
        assert_eq!(evaluate(120.0, "+100").unwrap(), 220.0);
        assert_eq!(evaluate(120.0, "*1.5").unwrap(), 180.0);
        assert_eq!(evaluate(10.0, " - 2 * 3 + 1").unwrap(), 5.0);
        assert_eq!(evaluate(10.0, "/4").unwrap(), 2.5);
        assert_eq!(evaluate(10.0, "").unwrap(), 10.0);
    }

    #[test]
    fn evaluates_no_code() {
        for hostile in [
            "__import__('os')",
            "+",
            "+x",
            "100",
            "+1e999e",
            "/0",
            "**2",
            "+(1)",
        ] {
            let message = evaluate(1.0, hostile).unwrap_err().to_string();
            assert!(message.contains("context_budget"), "{message}");
        }
    }
}
