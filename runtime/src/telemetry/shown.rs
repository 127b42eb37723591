//! Which models have series of their own, so that a thousand models are not a thousand times as many series: those with the most calls of
//! late. The others are summed up under `other`.
//!
//! It is decided when metrics are read, and calls pay nothing for it. What a model counts goes to its own series while it has them, and to
//! `other` while it has not, so that neither ever goes back: a model that comes again goes on where its series had ended. What it counted
//! meanwhile stays with `other`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::proto::{Bucket, LabelPair, Metric, MetricFamily, MetricType};

use super::calls::REQUESTS;

/// What the others are called. A model of that name is one of them.
const OTHER: &str = "other";
/// The labels whose values are names of models.
const LABELS: [&str; 2] = ["model", "ensemble"];
/// Calls count half after this time.
const HALF_LIFE: Duration = Duration::from_secs(600);
/// A model takes the place of another if it has so many times its calls, so that two do not change places with each reading.
const MARGIN: f64 = 1.5;

/// Which models are shown, and what has been counted where.
pub(crate) struct Shown {
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    read: Option<Instant>,
    models: HashMap<String, Standing>,
    /// By family and labels.
    series: HashMap<Vec<String>, Series>,
    /// The same of the others.
    others: BTreeMap<Vec<String>, Other>,
}

/// How a model stands.
#[derive(Default)]
struct Standing {
    calls: f64,
    recent: f64,
    shown: bool,
}

/// What a series has counted.
struct Series {
    /// All of it, at the last reading.
    seen: Vec<f64>,
    /// What of it has gone to the others.
    apart: Vec<f64>,
}

/// What series of the others have counted together; the metric has their labels and bounds.
struct Other {
    metric: Metric,
    sum: Vec<f64>,
}

impl Shown {
    /// Shows so many models.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// Leaves the series of those models that have some of their own, and one for all others.
    pub(crate) fn fold(&self, families: &mut [MetricFamily]) {
        self.fold_at(families, Instant::now());
    }

    fn fold_at(&self, families: &mut [MetricFamily], now: Instant) {
        // Nothing panics while the lock is held, and whoever reads metrics may wait for another.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.look(families, now);
        state.choose(self.most);
        families.iter_mut().for_each(|family| state.fold(family));
    }
}

impl State {
    /// Sees which models there are, and what calls they have had.
    fn look(&mut self, families: &[MetricFamily], now: Instant) {
        let passed = self.read.map_or(Duration::ZERO, |read| now.saturating_duration_since(read));
        self.read = Some(now);
        let left = 0.5_f64.powf(passed.as_secs_f64() / HALF_LIFE.as_secs_f64());
        let mut calls: HashMap<&str, f64> = HashMap::new();
        for family in families {
            for metric in family.get_metric() {
                let Some(model) = model_of(metric) else { continue };
                let count = if family.name() == REQUESTS { metric.get_counter().get_value() } else { 0.0 };
                *calls.entry(model).or_default() += count;
            }
        }
        for (model, calls) in calls {
            let standing = self.models.entry(model.to_owned()).or_default();
            standing.recent = standing.recent * left + (calls - standing.calls).max(0.0);
            standing.calls = calls;
        }
    }

    /// Decides who is shown.
    fn choose(&mut self, most: usize) {
        let mut hidden: Vec<(&str, f64)> = Vec::new();
        let mut shown: Vec<(&str, f64)> = Vec::new();
        for (model, standing) in self.models.iter().filter(|(model, _)| *model != OTHER) {
            let list = if standing.shown { &mut shown } else { &mut hidden };
            list.push((model, standing.recent));
        }
        // The name decides where nothing else does, so that the order of a table does not.
        hidden.sort_by(|(one, a), (other, b)| b.total_cmp(a).then(one.cmp(other)));
        shown.sort_by(|(one, a), (other, b)| a.total_cmp(b).then(other.cmp(one)));
        let mut chosen: BTreeSet<String> = shown.iter().map(|(model, _)| (*model).to_owned()).collect();
        let mut weakest = shown.into_iter();
        for (model, recent) in hidden {
            if chosen.len() >= most {
                match weakest.next() {
                    Some((leaves, had)) if recent > had * MARGIN => {
                        chosen.remove(leaves);
                    }
                    _ => break,
                }
            }
            chosen.insert(model.to_owned());
        }
        for (model, standing) in &mut self.models {
            standing.shown = chosen.contains(model);
        }
    }

    fn fold(&mut self, family: &mut MetricFamily) {
        if !family.get_metric().iter().any(|metric| model_of(metric).is_some()) {
            return;
        }
        let (name, kind) = (family.name().to_owned(), family.get_field_type());
        let grows = matches!(kind, MetricType::COUNTER | MetricType::HISTOGRAM);
        let mut kept = Vec::new();
        // What does not only grow is as it is now.
        let mut now: BTreeMap<Vec<String>, Other> = BTreeMap::new();
        for mut metric in family.take_metric() {
            let Some(model) = model_of(&metric) else {
                kept.push(metric);
                continue;
            };
            let shown = self.models.get(model).is_some_and(|standing| standing.shown);
            let values = values(&metric, kind);
            let growth = if grows { self.growth(&name, &metric, &values, shown) } else { values };
            if shown {
                if grows {
                    set(&mut metric, kind, &growth);
                }
                kept.push(metric);
                continue;
            }
            let others = if grows { &mut self.others } else { &mut now };
            let of_others = anonymous(metric);
            let other = others
                .entry(key(&name, &of_others))
                .or_insert_with(|| Other { sum: vec![0.0; growth.len()], metric: of_others });
            other.sum.iter_mut().zip(&growth).for_each(|(sum, more)| *sum += more);
        }
        let others = if grows { &self.others } else { &now };
        for (key, other) in others {
            if key.first() == Some(&name) {
                let mut metric = other.metric.clone();
                set(&mut metric, kind, &other.sum);
                kept.push(metric);
            }
        }
        family.set_metric(kept);
    }

    /// What a series has counted for itself where it is shown, and else what it has counted since the last reading.
    fn growth(&mut self, family: &str, metric: &Metric, values: &[f64], shown: bool) -> Vec<f64> {
        let none = || vec![0.0; values.len()];
        let series = self.series.entry(key(family, metric));
        let series = series.or_insert_with(|| Series { seen: none(), apart: none() });
        let since: Vec<f64> = values.iter().zip(&series.seen).map(|(now, seen)| now - seen).collect();
        series.seen = values.to_vec();
        if shown {
            return values.iter().zip(&series.apart).map(|(all, apart)| all - apart).collect();
        }
        series.apart.iter_mut().zip(&since).for_each(|(apart, more)| *apart += more);
        since
    }
}

fn model_of(metric: &Metric) -> Option<&str> {
    let label = metric.get_label().iter().find(|label| LABELS.contains(&label.name()));
    label.map(LabelPair::value)
}

/// Under which a series is found.
fn key(family: &str, metric: &Metric) -> Vec<String> {
    let labels = metric.get_label().iter();
    let labels = labels.flat_map(|label| [label.name().to_owned(), label.value().to_owned()]);
    std::iter::once(family.to_owned()).chain(labels).collect()
}

/// The series of the others to which one belongs.
fn anonymous(metric: Metric) -> Metric {
    let mut metric = metric;
    let mut labels = metric.take_label();
    for label in labels.iter_mut().filter(|label| LABELS.contains(&label.name())) {
        label.set_value(OTHER.into());
    }
    metric.set_label(labels);
    metric
}

/// What a metric counts: of a histogram, how many, their sum, and how many in each bucket.
fn values(metric: &Metric, kind: MetricType) -> Vec<f64> {
    match kind {
        MetricType::COUNTER => vec![metric.get_counter().get_value()],
        MetricType::GAUGE => vec![metric.get_gauge().get_value()],
        MetricType::HISTOGRAM => {
            let histogram = metric.get_histogram();
            let buckets = histogram.get_bucket().iter().map(|bucket| bucket.cumulative_count() as f64);
            [histogram.get_sample_count() as f64, histogram.get_sample_sum()]
                .into_iter()
                .chain(buckets)
                .collect()
        }
        _ => Vec::new(),
    }
}

fn set(metric: &mut Metric, kind: MetricType, values: &[f64]) {
    match (kind, values) {
        (MetricType::COUNTER, [value]) => {
            let mut counter = metric.get_counter().clone();
            counter.set_value(*value);
            metric.set_counter(counter);
        }
        (MetricType::GAUGE, [value]) => {
            let mut gauge = metric.get_gauge().clone();
            gauge.set_value(*value);
            metric.set_gauge(gauge);
        }
        (MetricType::HISTOGRAM, [count, sum, counts @ ..]) => {
            let mut histogram = metric.get_histogram().clone();
            histogram.set_sample_count(*count as u64);
            histogram.set_sample_sum(*sum);
            let buckets = histogram.get_bucket().iter().zip(counts).map(|(old, count)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(old.upper_bound());
                bucket.set_cumulative_count(*count as u64);
                bucket
            });
            let buckets = buckets.collect();
            histogram.set_bucket(buckets);
            metric.set_histogram(histogram);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

    use super::*;

    /// Models that count, and a reader.
    struct World {
        registry: Registry,
        requests: IntCounterVec,
        seconds: HistogramVec,
        bytes: IntGaugeVec,
        shown: Shown,
        now: Instant,
    }

    impl World {
        fn new(most: usize) -> Self {
            let registry = Registry::new();
            let requests = IntCounterVec::new(Opts::new(REQUESTS, "r"), &["model", "outcome"]).unwrap();
            let seconds = HistogramOpts::new("seconds", "s").buckets(vec![1.0, 2.0]);
            let seconds = HistogramVec::new(seconds, &["model"]).unwrap();
            let bytes = IntGaugeVec::new(Opts::new("bytes", "b"), &["model"]).unwrap();
            registry.register(Box::new(requests.clone())).unwrap();
            registry.register(Box::new(seconds.clone())).unwrap();
            registry.register(Box::new(bytes.clone())).unwrap();
            Self { registry, requests, seconds, bytes, shown: Shown::new(most), now: Instant::now() }
        }

        fn calls(&self, model: &str, count: u64) {
            self.requests.with_label_values(&[model, "ok"]).inc_by(count);
            (0..count).for_each(|_| self.seconds.with_label_values(&[model]).observe(1.5));
        }

        /// All lines by their names and labels.
        fn read(&mut self) -> BTreeMap<String, f64> {
            self.now += Duration::from_secs(300);
            let mut families = self.registry.gather();
            self.shown.fold_at(&mut families, self.now);
            let text = TextEncoder::new().encode_to_string(&families).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let pairs = lines.filter_map(|line| line.rsplit_once(' '));
            pairs.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
        }
    }

    fn requests(model: &str) -> String {
        format!("{REQUESTS}{{model=\"{model}\",outcome=\"ok\"}}")
    }

    #[test]
    fn few_models_are_shown_as_they_are() {
        let mut world = World::new(3);
        for model in ["a", "b", "c"] {
            world.calls(model, 2);
        }
        let lines = world.read();
        assert_eq!(lines[&requests("b")], 2.0);
        assert!(lines.keys().all(|name| !name.contains(OTHER)), "{lines:?}");
    }

    #[test]
    fn of_many_models_those_with_the_most_calls_are_shown() {
        let mut world = World::new(2);
        for (model, calls) in [("a", 1), ("b", 50), ("c", 2), ("d", 40), ("other", 1000)] {
            world.calls(model, calls);
            world.bytes.with_label_values(&[model]).set(7);
        }
        let lines = world.read();
        let of = |model: &str| lines.get(&requests(model)).copied();
        assert_eq!((of("b"), of("d"), of("a"), of("c")), (Some(50.0), Some(40.0), None, None));
        assert_eq!(of(OTHER), Some(1003.0), "a model of that name is one of them");
        assert_eq!(lines["bytes{model=\"other\"}"], 21.0);
        assert_eq!(lines["seconds_count{model=\"other\"}"], 1003.0);
        assert_eq!(lines["seconds_bucket{model=\"other\",le=\"1\"}"], 0.0);
        assert_eq!(lines["seconds_bucket{model=\"other\",le=\"2\"}"], 1003.0);
        assert_eq!(lines["seconds_sum{model=\"other\"}"], 1504.5);
    }

    #[test]
    fn nothing_ever_goes_back_and_all_calls_are_somewhere() {
        let mut world = World::new(2);
        let models = ["a", "b", "c", "d", "e"];
        let mut highest: BTreeMap<String, f64> = BTreeMap::new();
        let mut changes = BTreeSet::new();
        for round in 0..60 {
            // Each has its time.
            for (number, model) in models.iter().enumerate() {
                world.calls(model, if (round / 7) % models.len() == number { 900 } else { 1 });
            }
            let lines = world.read();
            let shown = lines.keys().filter(|name| name.starts_with(REQUESTS)).count();
            assert!(shown <= 3, "{shown} series");
            for (name, value) in lines.into_iter().filter(|(name, _)| !name.starts_with("bytes")) {
                let before = highest.entry(name.clone()).or_insert(value);
                assert!(value >= *before, "{name} goes from {before} to {value}");
                *before = value;
                changes.insert(name);
            }
        }
        assert!(models.iter().all(|model| changes.contains(&requests(model))), "each was shown: {changes:?}");
        let all: f64 =
            highest.iter().filter(|(name, _)| name.starts_with(REQUESTS)).map(|(_, value)| value).sum();
        let counted: u64 =
            models.iter().map(|one| world.requests.with_label_values(&[one, "ok"]).get()).sum();
        // What was shown last of those that are hidden now is counted in.
        assert_eq!(all, counted as f64);
    }

    #[test]
    fn what_was_shown_stays_its_own_when_models_become_too_many() {
        let mut world = World::new(2);
        world.calls("a", 10);
        world.calls("b", 5);
        world.read();
        world.calls("a", 1);
        world.calls("c", 3);
        let lines = world.read();
        assert_eq!((lines[&requests("a")], lines[&requests("b")], lines[&requests(OTHER)]), (11.0, 5.0, 3.0));
    }

    #[test]
    fn a_thousand_models_are_as_many_series_as_are_shown() {
        let mut world = World::new(50);
        for number in 0..1000 {
            world.calls(&format!("m{number}"), 1 + number % 7);
        }
        for _ in 0..3 {
            let lines = world.read();
            assert_eq!(lines.keys().filter(|name| name.starts_with(REQUESTS)).count(), 51);
        }
    }
}
