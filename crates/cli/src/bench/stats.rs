use serde_json::{Value, json};

/// How samples are spread.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) median: f64,
    pub(crate) upper_quartile: f64,
    pub(crate) max: f64,
    /// In the order that they were taken.
    samples: Vec<f64>,
}

impl Spread {
    /// The spread of at least one sample; quantiles between two samples lie on the line between them.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let samples: Vec<f64> = samples.into_iter().collect();
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let quantile = |q: f64| {
            let at = q * (sorted.len() - 1) as f64;
            let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
            low + (high - low) * at.fract()
        };
        let (lower_quartile, median, upper_quartile) = (quantile(0.25), quantile(0.5), quantile(0.75));
        Some(Spread { min, lower_quartile, median, upper_quartile, max, samples })
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "median": self.median,
            "lower_quartile": self.lower_quartile,
            "upper_quartile": self.upper_quartile,
            "min": self.min,
            "max": self.max,
            "samples": self.samples,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_samples() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.min, spread.lower_quartile, spread.median), (1.0, 1.75, 2.5));
        assert_eq!((spread.upper_quartile, spread.max), (3.25, 4.0));
        assert_eq!(spread.json()["samples"], json!([4.0, 1.0, 3.0, 2.0]));
        let one = Spread::of([7.0]).unwrap();
        assert_eq!((one.min, one.median, one.max), (7.0, 7.0, 7.0));
        assert_eq!(Spread::of([]), None);
    }
}
