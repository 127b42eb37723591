//! Replicas under test, and what they tell of themselves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use outrigger_benches::client::{Address, Client, request};
use outrigger_benches::server;
use outrigger_testkit::{Launch, ReplicaProcess};

use crate::models::Model;

/// Longer than any answer takes, that of a load among them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than any start takes.
const START: Duration = Duration::from_secs(1800);
/// Between two questions whether it is there.
const PAUSE: Duration = Duration::from_millis(5);

/// A replica with this configuration, to be started.
pub(crate) fn launch(configuration: String) -> anyhow::Result<Launch> {
    let launch = Launch::new(server::outrigger()?).file("outrigger.toml", configuration);
    Ok(launch.args(["--config", "outrigger.toml"]))
}

/// When a replica was ready, and when it first answered a call.
pub(crate) struct There {
    pub(crate) ready: Instant,
    pub(crate) answered: Instant,
}

/// Waits until it is ready and has answered a call of a model, whichever comes first.
pub(crate) async fn there(replica: &mut ReplicaProcess, model: &Model) -> anyhow::Result<There> {
    let probe = until_ok(client(&replica.observe)?, request("GET", "/ready", &[], b""));
    let call = until_ok(client(&replica.score)?, model.call(None));
    let there = async { tokio::try_join!(probe, call) };
    let ended = async {
        let begun = Instant::now();
        while replica.ended().is_none() && begun.elapsed() < START {
            tokio::time::sleep(20 * PAUSE).await;
        }
    };
    let there = tokio::select! {
        there = there => Some(there?),
        () = ended => None,
    };
    match there {
        Some(((ready, _), (answered, body))) => {
            model.check(&body)?;
            Ok(There { ready, answered })
        }
        None => bail!("the replica does not become ready; its log:\n{}", replica.log_text()),
    }
}

/// Asks until the answer is 200; when that was, and its body.
async fn until_ok(mut client: Client, request: Vec<u8>) -> anyhow::Result<(Instant, Vec<u8>)> {
    loop {
        let answer = client.send(&request).await?;
        if answer.status == 200 {
            return Ok((Instant::now(), answer.body));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A client of a listener.
pub(crate) fn client(url: &str) -> anyhow::Result<Client> {
    Ok(Client::new(Address::Port(url.trim_start_matches("http://").parse()?), PATIENCE))
}

/// Calls each model, one after the other; how many milliseconds each took.
pub(crate) async fn call_each(replica: &ReplicaProcess, models: &[Model]) -> anyhow::Result<Vec<f64>> {
    let mut client = client(&replica.score)?;
    let mut took = Vec::new();
    for model in models {
        let call = model.call(None);
        let sent = Instant::now();
        let answer = client.send(&call).await?;
        took.push(sent.elapsed().as_secs_f64() * 1e3);
        let said = String::from_utf8_lossy(&answer.body);
        ensure!(answer.status == 200, "{}: {} {said}", model.name, answer.status);
        model.check(&answer.body)?;
    }
    Ok(took)
}

/// `/metrics`.
pub(crate) struct Metrics(String);

impl Metrics {
    pub(crate) async fn of(replica: &ReplicaProcess) -> anyhow::Result<Self> {
        let answer = client(&replica.observe)?.send(&request("GET", "/metrics", &[], b"")).await?;
        ensure!(answer.status == 200, "/metrics: {}", answer.status);
        Ok(Self(String::from_utf8(answer.body).context("/metrics")?))
    }

    /// The values of a metric by one of its labels, those of equal labels together; nothing if there is no such metric.
    pub(crate) fn by(&self, metric: &str, label: &str) -> BTreeMap<String, f64> {
        let mut values = BTreeMap::new();
        for line in self.0.lines() {
            let Some((labels, value)) = line
                .strip_prefix(metric)
                .and_then(|rest| rest.strip_prefix('{'))
                .and_then(|rest| rest.rsplit_once("} "))
            else {
                continue;
            };
            // No label here has a comma or an equals sign in its value.
            let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
            let of =
                pairs.filter(|(name, _)| *name == label).map(|(_, value)| value.trim_matches('"')).next();
            *values.entry(of.unwrap_or_default().to_owned()).or_insert(0.0) += value.parse().unwrap_or(0.0);
        }
        values
    }

    /// The names of a metric's labels.
    pub(crate) fn labels(&self, metric: &str) -> Vec<String> {
        let line =
            self.0.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix('{')?.rsplit_once("} "));
        let pairs = line.into_iter().flat_map(|(labels, _)| labels.split(','));
        pairs.filter_map(|pair| Some(pair.split_once('=')?.0.to_owned())).collect()
    }

    /// The sum of a metric over its labels; `None` if there is no such metric.
    pub(crate) fn sum(&self, metric: &str) -> Option<f64> {
        let is_it = |line: &&str| {
            line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        };
        let values =
            self.0.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.reduce(|sum, value| sum + value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed() {
        let text = "# HELP a_total things\na_total{model=\"x\",how=\"b\"} 2\na_total{model=\"x\",how=\"c\"} 3\na_total{model=\"y\",how=\"c\"} 4\na_total_of{model=\"x\"} 9\nb 1.5\n";
        let metrics = Metrics(text.into());
        assert_eq!(metrics.sum("a_total"), Some(9.0));
        assert_eq!((metrics.sum("b"), metrics.sum("c")), (Some(1.5), None));
        assert_eq!(metrics.by("a_total", "model"), BTreeMap::from([("x".into(), 5.0), ("y".into(), 4.0)]));
        assert_eq!(metrics.by("a_total", "how"), BTreeMap::from([("b".into(), 2.0), ("c".into(), 7.0)]));
        assert_eq!(metrics.labels("a_total"), ["model", "how"]);
        assert!(metrics.by("c", "how").is_empty() && metrics.labels("b").is_empty());
    }
}
