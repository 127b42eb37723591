//! The models: all different, of one signature, and quick to call whatever their size.

use anyhow::{Context as _, ensure};
use outrigger_benches::client;
use outrigger_benches::random::Random;
use outrigger_protocol::headers::REQUEST_DEADLINE_MS;
use outrigger_testkit::onnx;
use outrigger_testkit::replica::KEY;
use serde_json::{Value, json};

/// Smallest model, bytes.
const SMALLEST: f64 = 5e3;
/// Largest model, bytes.
pub(crate) const LARGEST: f64 = 20e6;

/// A model.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    /// What its answers say, so that they can be told apart.
    pub(crate) number: usize,
    pub(crate) name: String,
    /// About how many bytes it has.
    pub(crate) size: u64,
}

impl Model {
    pub(crate) fn new(number: usize, size: f64) -> Self {
        Self { number, name: format!("m{number:04}"), size: size as u64 }
    }

    /// Its file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        onnx::sized(self.size, self.number as u64)
    }

    /// A call, as bytes; with a deadline if one is given.
    pub(crate) fn call(&self, deadline: Option<std::time::Duration>) -> Vec<u8> {
        let unit: Vec<u8> =
            (0..onnx::SIZED_WIDTH).map(|at| u8::from(at == self.number % onnx::SIZED_WIDTH)).collect();
        let input = json!({ "name": "x", "shape": [1, unit.len()], "datatype": "FP32", "data": unit });
        let header = REQUEST_DEADLINE_MS;
        let (key, deadline) =
            (format!("Bearer {KEY}"), deadline.map(|deadline| deadline.as_millis().to_string()));
        let mut fields = vec![("authorization", key.as_str()), ("content-type", "application/json")];
        fields.extend(deadline.as_deref().map(|deadline| (header.as_str(), deadline)));
        let path = format!("/v2/models/{}/infer", self.name);
        client::request("POST", &path, &fields, json!({ "inputs": [input] }).to_string().as_bytes())
    }

    /// Looks whether it was this model that answered.
    pub(crate) fn check(&self, answer: &[u8]) -> anyhow::Result<()> {
        let value: Value = serde_json::from_slice(answer).context("the answer")?;
        let first = value["outputs"][0]["data"][0].as_f64().unwrap_or(f64::NAN);
        ensure!(first.round() == self.number as f64, "{} answered {value}", self.name);
        Ok(())
    }
}

/// Models between the smallest and the largest size, evenly on a logarithmic scale, and scaled so that they are so many megabytes together. Names say nothing of
/// sizes.
pub(crate) fn models(count: usize, megabytes: f64, seed: u64) -> Vec<Model> {
    let span = (LARGEST / SMALLEST).ln();
    let mut sizes: Vec<f64> =
        (0..count).map(|at| SMALLEST * (span * (at as f64 + 0.5) / count as f64).exp()).collect();
    let scale = megabytes * 1e6 / sizes.iter().sum::<f64>();
    sizes.iter_mut().for_each(|size| *size = (*size * scale).clamp(SMALLEST, LARGEST));
    Random::new(seed).shuffle(&mut sizes);
    sizes.into_iter().enumerate().map(|(number, size)| Model::new(number, size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_sum_that_is_wanted_and_lie_between_the_bounds() {
        let models = models(1000, 2000.0, 1);
        let sum: u64 = models.iter().map(|model| model.size).sum();
        assert!(sum.abs_diff(2_000_000_000) < 20_000_000, "{sum}");
        assert!(models.iter().all(|model| (5_000..=20_000_000).contains(&model.size)));
        assert_ne!(models[0].size, super::models(1000, 2000.0, 2)[0].size);
    }

    #[test]
    fn an_answer_is_that_of_its_model() {
        let model = Model::new(7, SMALLEST);
        let answer = |value: f64| json!({ "outputs": [{ "data": [value, 0.0] }] }).to_string().into_bytes();
        assert!(model.check(&answer(7.2)).is_ok());
        assert!(model.check(&answer(8.2)).is_err() && model.check(b"{}").is_err());
        let call = String::from_utf8(model.call(Some(std::time::Duration::from_secs(5)))).unwrap();
        assert!(call.starts_with("POST /v2/models/m0007/infer HTTP/1.1\r\n"), "{call}");
        assert!(
            call.contains("x-request-deadline-ms: 5000\r\n") && call.contains("0,0,0,0,0,0,0,1,0"),
            "{call}"
        );
    }
}
