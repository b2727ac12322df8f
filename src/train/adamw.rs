//! AdamW (arXiv 1711.05101) and gradient clipping, to the letter of PyTorch's.

use rayon::prelude::*;

use super::objective::Tensor;
use crate::error::{Error, Result};

/// The constants of AdamW; the defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the mean of gradients, below 1.
    pub beta1: f64,
    /// Decay of the mean of their squares, below 1.
    pub beta2: f64,
    /// Added to the root of the mean of squares.
    pub eps: f64,
    /// Share of the learning rate by which parameters shrink in a step, apart from the gradient.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
        }
    }
}

/// What AdamW remembers of earlier steps.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    /// Steps taken.
    pub step: u64,
    /// Means of gradients, in the order and shape of the parameters.
    pub mean: Vec<Vec<f32>>,
    /// Means of their squares, likewise.
    pub square: Vec<Vec<f32>>,
}

impl Moments {
    /// Before the first step.
    pub fn new(parameters: &[Tensor]) -> Self {
        let zeros = || parameters.iter().map(|p| vec![0.0; p.values.len()]);
        Moments {
            step: 0,
            mean: zeros().collect(),
            square: zeros().collect(),
        }
    }
}

/// Elements that one thread takes at a time.
const CHUNK: usize = 1 << 14;

impl AdamW {
    /// Takes one step of size `lr` along `gradients`, in f32 as PyTorch does. A parameter whose gradient
    /// is empty has none: it and its moments stay as they are, without decay.
    ///
    /// # Errors
    /// [`Error::Shape`] where parameters, gradients and moments do not fit together.
    pub fn step(
        &self,
        parameters: &mut [Tensor],
        gradients: &[Vec<f32>],
        moments: &mut Moments,
        lr: f64,
    ) -> Result<()> {
        let lengths = |tensors: &[Vec<f32>]| tensors.iter().map(Vec::len).collect::<Vec<_>>();
        let want: Vec<usize> = parameters.iter().map(|p| p.values.len()).collect();
        let mut given = lengths(gradients);
        for (given, &want) in given.iter_mut().zip(&want) {
            if *given == 0 {
                *given = want;
            }
        }
        for (op, got) in [
            ("AdamW: gradients", given),
            ("AdamW: means", lengths(&moments.mean)),
            ("AdamW: squares", lengths(&moments.square)),
        ] {
            if got != want {
                return Err(Error::Shape {
                    op,
                    want: format!("{} tensors of the parameters' sizes", want.len()),
                    got: format!("{} tensors", got.len()),
                });
            }
        }
        moments.step += 1;
        let t = moments.step as f64;
        let keep = (1.0 - lr * self.weight_decay) as f32;
        let (lerp, beta2, rest2) = (
            (1.0 - self.beta1) as f32,
            self.beta2 as f32,
            (1.0 - self.beta2) as f32,
        );
        let size = (lr / (1.0 - self.beta1.powf(t))) as f32;
        let root2 = (1.0 - self.beta2.powf(t)).sqrt() as f32;
        let eps = self.eps as f32;
        let tensors = parameters
            .iter_mut()
            .zip(gradients)
            .zip(&mut moments.mean)
            .zip(&mut moments.square)
            .filter(|(((_, gradient), _), _)| !gradient.is_empty());
        for (((parameter, gradient), mean), square) in tensors {
            parameter
                .values
                .par_chunks_mut(CHUNK)
                .zip(gradient.par_chunks(CHUNK))
                .zip(mean.par_chunks_mut(CHUNK))
                .zip(square.par_chunks_mut(CHUNK))
                .for_each(|(((parameter, gradient), mean), square)| {
                    let all = parameter.iter_mut().zip(gradient).zip(mean).zip(square);
                    for (((p, &g), m), v) in all {
                        *p *= keep;
                        *m += lerp * (g - *m);
                        *v = *v * beta2 + rest2 * g * g;
                        *p -= size * (*m / (v.sqrt() / root2 + eps));
                    }
                });
        }
        Ok(())
    }
}

/// Scales gradients down to a norm of `most` over all of them, where it is more, as PyTorch's
/// `clip_grad_norm_`; gives the norm before. `None` only measures.
pub fn clip(gradients: &mut [Vec<f32>], max: Option<f64>) -> f64 {
    let squares = gradients.iter().flatten().map(|&g| f64::from(g).powi(2));
    let norm = squares.sum::<f64>().sqrt();
    if let Some(max) = max {
        let scale = max / (norm + 1e-6);
        if scale < 1.0 {
            let scale = scale as f32;
            gradients.iter_mut().flatten().for_each(|g| *g *= scale);
        }
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor {
            name: "w".into(),
            shape: [1, values.len()],
            values: values.to_vec(),
        }
    }

    /// The gradient that the values below were made with: `g[i] = sin(3·step + i) · (i + 1)`, step
    /// from 0, i over both tensors.
    fn gradient(step: usize) -> Vec<Vec<f32>> {
        let g = |i: usize| ((3 * step + i) as f64).sin() as f32 * (i + 1) as f32;
        vec![vec![g(0), g(1), g(2)], vec![g(3), g(4)]]
    }

    /// Made with PyTorch 2.15:
    ///
    /// ```python
    /// w = [torch.tensor([1., -2., .5]), torch.tensor([.25, 3.])]
    /// o = torch.optim.AdamW(w, lr=0.01, weight_decay=0.1)
    /// for s in range(5):
    ///     g = [math.sin(3*s+i)*(i+1) for i in range(5)]   # each rounded to f32 before the product
    ///     w[0].grad, w[1].grad = torch.tensor(g[:3]), torch.tensor(g[3:])
    ///     print(torch.nn.utils.clip_grad_norm_(w, 2.0)); o.step()
    /// ```
    #[test]
    fn steps_are_pytorchs() {
        let norms = [
            4.991_099_8,
            4.756_752,
            4.553_076_7,
            4.401_542_7,
            4.320_184_7,
        ];
        let want = [
            0.989_889_26,
            -2.004_656_8,
            0.484_083_27,
            0.239_295_78,
            2.999_922_3f32,
        ];
        let adamw = AdamW {
            weight_decay: 0.1,
            ..AdamW::default()
        };
        let mut parameters = [tensor(&[1.0, -2.0, 0.5]), tensor(&[0.25, 3.0])];
        let mut moments = Moments::new(&parameters);
        for (step, norm) in norms.into_iter().enumerate() {
            let mut gradients = gradient(step);
            let got = clip(&mut gradients, Some(2.0));
            assert!((got - norm).abs() < 1e-6 * norm, "{got} for {norm}");
            adamw
                .step(&mut parameters, &gradients, &mut moments, 0.01)
                .unwrap();
        }
        let got = parameters.iter().flat_map(|p| &p.values);
        for (got, want) in got.zip(want) {
            assert!(
                (got - want).abs() <= 2e-7 * want.abs().max(1.0),
                "{got} for {want}"
            );
        }
    }

    #[test]
    fn a_small_gradient_is_not_clipped() {
        let mut gradients = vec![vec![0.3f32], vec![-0.4]];
        assert!((clip(&mut gradients, Some(1.0)) - 0.5).abs() < 1e-7);
        assert_eq!(gradients, [[0.3], [-0.4]]);
        clip(&mut gradients, Some(0.05));
        assert!((gradients[0][0] - 0.03).abs() < 1e-6);
    }

    #[test]
    fn without_a_gradient_nothing_moves() {
        let mut parameters = [tensor(&[1.0, 2.0]), tensor(&[3.0])];
        let mut moments = Moments::new(&parameters);
        let gradients = [vec![], vec![0.0]];
        AdamW::default()
            .step(&mut parameters, &gradients, &mut moments, 0.1)
            .unwrap();
        assert_eq!(parameters[0].values, [1.0, 2.0]);
        assert_eq!(moments.mean[0], [0.0, 0.0]);
        // A gradient of zero still lets it decay.
        assert!(parameters[1].values[0] < 3.0);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut parameters = [tensor(&[1.0, 2.0])];
        let mut moments = Moments::new(&parameters);
        let adamw = AdamW::default();
        for gradients in [vec![], vec![vec![0.0; 3]], vec![vec![0.0; 2]; 2]] {
            let done = adamw.step(&mut parameters, &gradients, &mut moments, 0.1);
            assert!(matches!(done, Err(Error::Shape { .. })));
        }
        assert_eq!(moments.step, 0);
    }
}
