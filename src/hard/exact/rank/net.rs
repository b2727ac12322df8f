//! A small network over features: one hidden layer beside a linear one, as text.

use std::fmt::Write;

use super::features::Column;

/// `linear · x + output · act(hidden · x + bias)`, where x is the standardised features.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Net {
    /// One for each feature, in order.
    pub inputs: Vec<Input>,
    /// Biases of the hidden units, and what each adds to the score.
    pub bias: Vec<f32>,
    pub output: Vec<f32>,
}

/// What the network knows of a feature.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Input {
    pub name: String,
    /// Mean and one by the deviation over the training rows.
    pub mean: f32,
    pub scale: f32,
    /// Weight of the linear layer.
    pub linear: f32,
    /// Weights of the hidden units.
    pub hidden: Vec<f32>,
}

/// The hidden units' activation: a smooth ramp that needs a square root alone, so that every machine
/// computes the same bits.
pub(crate) fn activation(x: f64) -> f64 {
    0.5 * (x + (x * x + 1.0).sqrt())
}

/// Its slope.
pub(crate) fn slope(x: f64) -> f64 {
    0.5 * (1.0 + x / (x * x + 1.0).sqrt())
}

impl Net {
    /// The score of each row of the feature columns.
    pub fn scores(&self, columns: &[Column]) -> Vec<f64> {
        let rows = columns.first().map_or(0, Vec::len);
        let mut hidden = vec![0.0; self.bias.len()];
        (0..rows)
            .map(|row| {
                hidden
                    .iter_mut()
                    .zip(&self.bias)
                    .for_each(|(h, &bias)| *h = f64::from(bias));
                let mut score = 0.0;
                for (input, column) in self.inputs.iter().zip(columns) {
                    let x = (column[row] - f64::from(input.mean)) * f64::from(input.scale);
                    score += f64::from(input.linear) * x;
                    for (h, &weight) in hidden.iter_mut().zip(&input.hidden) {
                        *h += f64::from(weight) * x;
                    }
                }
                for (&h, &weight) in hidden.iter().zip(&self.output) {
                    score += f64::from(weight) * activation(h);
                }
                score
            })
            .collect()
    }

    /// Numbers that training found.
    pub fn weights(&self) -> usize {
        self.inputs.len() * (1 + self.bias.len()) + 2 * self.bias.len()
    }

    /// One network whose score is the mean of several that read the same features alike.
    pub fn mean_of(nets: &[Net]) -> Option<Net> {
        let share = 1.0 / nets.len() as f32;
        let mut nets = nets.iter();
        let mut all = nets.next()?.clone();
        all.inputs
            .iter_mut()
            .for_each(|input| input.linear *= share);
        all.output.iter_mut().for_each(|weight| *weight *= share);
        for net in nets {
            for (input, other) in all.inputs.iter_mut().zip(&net.inputs) {
                input.linear += other.linear * share;
                input.hidden.extend(&other.hidden);
            }
            all.bias.extend(&net.bias);
            all.output
                .extend(net.output.iter().map(|weight| weight * share));
        }
        Some(all)
    }

    /// A line for each feature: name, mean, scale, linear weight, hidden weights; then the hidden units'
    /// biases and outputs. [`Net::parse`] gives the same bits.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let list = |values: &[f32]| {
            values
                .iter()
                .fold(String::new(), |s, v| s + &format!(" {v}"))
        };
        for input in &self.inputs {
            let Input {
                name,
                mean,
                scale,
                linear,
                hidden,
            } = input;
            let _ = writeln!(text, "{name} {mean} {scale} {linear}{}", list(hidden));
        }
        let _ = writeln!(text, "bias{}", list(&self.bias));
        let _ = writeln!(text, "output{}", list(&self.output));
        text
    }

    /// Reads what [`Net::to_text`] wrote, for these features in this order.
    ///
    /// # Errors
    /// What is wrong with which line, counted from 1.
    pub fn parse<'t>(
        lines: &mut impl Iterator<Item = (usize, &'t str)>,
        names: &[String],
    ) -> Result<Net, String> {
        let mut next = |name: &str, count: Option<usize>| {
            let (number, line) = lines
                .next()
                .ok_or_else(|| format!("it ends before `{name}`"))?;
            let mut parts = line.split_whitespace();
            let found = parts.next().unwrap_or_default();
            if found != name {
                return Err(format!("line {number}: expected `{name}`, got `{found}`"));
            }
            let values = parts
                .map(|part| part.parse::<f32>().ok().filter(|v| v.is_finite()))
                .collect::<Option<Vec<f32>>>()
                .ok_or_else(|| format!("line {number}: a value that is not a finite number"))?;
            match count.is_none_or(|count| count == values.len()) {
                true => Ok((number, values)),
                false => Err(format!(
                    "line {number}: {} values, expected {}",
                    values.len(),
                    count.unwrap_or_default()
                )),
            }
        };
        let mut inputs: Vec<Input> = Vec::new();
        for name in names {
            let count = inputs.first().map(|first| first.hidden.len() + 3);
            let (number, values) = next(name, count)?;
            let [mean, scale, linear, hidden @ ..] = values.as_slice() else {
                return Err(format!("line {number}: fewer than 3 values"));
            };
            inputs.push(Input {
                name: name.to_string(),
                mean: *mean,
                scale: *scale,
                linear: *linear,
                hidden: hidden.to_vec(),
            });
        }
        let units = inputs.first().map(|first| first.hidden.len());
        let (_, bias) = next("bias", units)?;
        let (_, output) = next("output", units)?;
        Ok(Net {
            inputs,
            bias,
            output,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net() -> Net {
        let input = |name: &str, linear, hidden: &[f32]| Input {
            name: name.into(),
            mean: 0.5,
            scale: 2.0,
            linear,
            hidden: hidden.to_vec(),
        };
        Net {
            inputs: vec![
                input("a", 1.5, &[0.1, -0.7]),
                input("b", -1.0, &[0.3, 1e-7]),
            ],
            bias: vec![0.0, 1.0],
            output: vec![2.0, -0.3],
        }
    }

    fn parse(text: &str) -> Result<Net, String> {
        let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
        Net::parse(&mut lines, &["a", "b"].map(String::from))
    }

    #[test]
    fn text_gives_the_same_bits() {
        let text = net().to_text();
        assert_eq!(parse(&text), Ok(net()));
        for (from, to, says) in [
            ("b 0.5", "c 0.5", "line 2: expected `b`, got `c`"),
            ("bias 0 1", "bias 0", "line 3: 1 values, expected 2"),
            (
                "output 2",
                "output inf",
                "line 4: a value that is not a finite number",
            ),
            ("output 2 -0.3\n", "", "it ends before `output`"),
        ] {
            assert_eq!(parse(&text.replace(from, to)), Err(says.to_string()));
        }
    }

    #[test]
    fn scores_are_linear_and_hidden_parts() {
        let columns = [vec![0.5, 1.0], vec![0.5, 0.0]];
        let scores = net().scores(&columns);
        let hidden = |a: f64, b: f64| 2.0 * activation(a) - f64::from(0.3_f32) * activation(b);
        assert!((scores[0] - hidden(0.0, 1.0)).abs() < 1e-6, "{scores:?}");
        let want = 1.5 + 1.0 + hidden(0.1 - 0.3, 1.0 - 0.7 - 1e-7);
        assert!((scores[1] - want).abs() < 1e-6, "{scores:?}");
        let both = Net::mean_of(&[net(), net()]).unwrap();
        assert!((both.scores(&columns)[1] - scores[1]).abs() < 1e-6);
        assert_eq!(both.weights(), 2 * 5 + 8);
    }

    #[test]
    fn the_slope_is_that_of_the_activation() {
        for x in [-3.0, -0.1, 0.0, 2.0] {
            let numeric = (activation(x + 1e-6) - activation(x - 1e-6)) / 2e-6;
            assert!((numeric - slope(x)).abs() < 1e-8);
        }
    }
}
