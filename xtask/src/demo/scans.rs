//! The scans that training has not seen, and what the service says about them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::http::Client;
use crate::{say, signals};

/// Pixels along an edge.
pub(crate) const EDGE: usize = 8;
/// A pixel that is all ink.
const INK: f64 = 16.0;

/// A scan, what it shows, and what the service takes it for.
pub(crate) struct Scored {
    pub(crate) id: u64,
    /// From 0, paper, to 1, ink.
    pub(crate) image: Vec<f64>,
    pub(crate) truth: i64,
    pub(crate) answer: i64,
    pub(crate) latency: Duration,
}

impl Scored {
    pub(crate) fn is_right(&self) -> bool {
        self.truth == self.answer
    }
}

/// What training held out: one entry per scan in each list.
#[derive(Debug, Deserialize)]
pub(crate) struct HeldOut {
    ids: Vec<u64>,
    images: Vec<Vec<f64>>,
    truth: Vec<i64>,
}

impl HeldOut {
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("{} does not hold scans", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let scans: Self = serde_json::from_str(text)?;
        if scans.ids.is_empty()
            || scans.ids.len() != scans.images.len()
            || scans.ids.len() != scans.truth.len()
        {
            bail!("{} ids, {} images, {} truths", scans.ids.len(), scans.images.len(), scans.truth.len());
        }
        if let Some(image) = scans.images.iter().find(|image| image.len() != EDGE * EDGE) {
            bail!("an image has {} pixels, expected {}", image.len(), EDGE * EDGE);
        }
        Ok(scans)
    }

    /// A request with the first scan, to be typed.
    pub(crate) fn sample(&self) -> String {
        body(&self.images[0])
    }

    /// Scores every scan in a request of its own over one connection; anything but a label is an error.
    pub(crate) fn score(self, client: &mut Client, key: &str) -> Result<Vec<Scored>> {
        let bar = say::bar(self.ids.len() as u64, "scans");
        let mut scored = Vec::with_capacity(self.ids.len());
        for ((id, image), truth) in self.ids.into_iter().zip(self.images).zip(self.truth) {
            if signals::heard() > 0 {
                bail!("interrupted");
            }
            let start = Instant::now();
            let answer = client.post("/score", key, body(&image).as_bytes())?;
            let latency = start.elapsed();
            if answer.status != 200 {
                bail!("scan {id} got status {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
            }
            let answer =
                label(&answer.body).with_context(|| format!("the answer for scan {id} has no label"))?;
            let image = image.into_iter().map(|pixel| pixel / INK).collect();
            scored.push(Scored { id, image, truth, answer, latency });
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(scored)
    }
}

/// Whole numbers are written without a decimal point: the line is to be read by people, too.
fn body(image: &[f64]) -> String {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Pixel {
        Whole(i64),
        Other(f64),
    }
    let whole = |pixel: f64| pixel.fract() == 0.0 && pixel.abs() < 1e9;
    let pixels: Vec<Pixel> = image
        .iter()
        .map(|&pixel| if whole(pixel) { Pixel::Whole(pixel as i64) } else { Pixel::Other(pixel) })
        .collect();
    serde_json::json!({ "data": [pixels] }).to_string()
}

fn label(body: &[u8]) -> Result<i64> {
    #[derive(Deserialize)]
    struct Answer {
        labels: Vec<i64>,
    }
    let answer: Answer = serde_json::from_slice(body)?;
    match answer.labels[..] {
        [label] => Ok(label),
        _ => bail!("{} labels for one scan", answer.labels.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_scans_are_checked() {
        let image = vec![16.0; 64];
        let text = |ids: &[u64], pixels: &[f64]| {
            serde_json::json!({"ids": ids, "images": [pixels], "truth": [3]}).to_string()
        };
        let scans = HeldOut::parse(&text(&[7], &image)).unwrap();
        assert!(scans.sample().starts_with(r#"{"data":[[16,16,"#), "{}", scans.sample());
        assert_eq!(HeldOut::parse(&text(&[], &image)).unwrap_err().to_string(), "0 ids, 1 images, 1 truths");
        let short = HeldOut::parse(&text(&[7], &image[1..])).unwrap_err().to_string();
        assert_eq!(short, "an image has 63 pixels, expected 64");
    }

    #[test]
    fn pixels_keep_their_fractions() {
        assert_eq!(body(&[0.0, 0.5, 16.0]), r#"{"data":[[0,0.5,16]]}"#);
    }

    #[test]
    fn one_label_for_one_scan() {
        assert_eq!(label(br#"{"labels": [7], "probabilities": [[0.1]]}"#).unwrap(), 7);
        assert!(label(br#"{"labels": [7, 8]}"#).is_err());
        assert!(label(br#"{"message": "no"}"#).is_err());
    }
}
