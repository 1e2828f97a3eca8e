//! Histograms with fixed buckets.

/// Counts of observations by upper bound.
///
/// There are `N` bounds, and one more counter for observations above all of them.
#[derive(Clone, Copy, Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [f64; N],
    counts: [u64; N],
    above: u64,
    sum: f64,
}

impl<const N: usize> Histogram<N> {
    /// A histogram without observations. The bounds must ascend.
    pub fn new(bounds: &'static [f64; N]) -> Histogram<N> {
        Histogram { bounds, counts: [0; N], above: 0, sum: 0.0 }
    }

    /// Adds an observation.
    pub fn observe(&mut self, value: f64) {
        let at = self.bounds.iter().position(|&bound| value <= bound);
        *at.map_or(&mut self.above, |at| &mut self.counts[at]) += 1;
        self.sum += value;
    }

    /// The sum of all observations.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.above
    }

    /// Each upper bound, and the number of observations between it and the previous one; the last bound is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        self.bounds.iter().copied().zip(self.counts).chain([(f64::INFINITY, self.above)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_on_a_bound_is_counted_in_its_bucket() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.0, 1.0, 1.5, 2.0, 3.0] {
            histogram.observe(value);
        }
        let counts: Vec<u64> = histogram.buckets().map(|(_, count)| count).collect();
        assert_eq!((counts, histogram.count(), histogram.sum()), (vec![2, 2, 1], 5, 7.5));
    }
}
