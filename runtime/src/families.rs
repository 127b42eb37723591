//! Metrics that are put together when they are asked for: a table says which there are, and their values come beside it, in its order.

use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{Metric, MetricFamily, MetricType};

use crate::metrics::family;

/// A metric.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: MetricType,
    pub(crate) labels: &'static [&'static str],
}

/// The metrics of a collector.
pub(crate) struct Families<const N: usize> {
    rows: &'static [Row; N],
    descriptions: Vec<Desc>,
}

impl<const N: usize> Families<N> {
    /// # Errors
    /// A name or a label that can be none.
    pub(crate) fn new(rows: &'static [Row; N]) -> Result<Self, prometheus::Error> {
        let describe = |row: &Row| {
            let labels = row.labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(row.name.into(), row.help.into(), labels, HashMap::new())
        };
        Ok(Self { rows, descriptions: rows.iter().map(describe).collect::<Result<_, _>>()? })
    }

    pub(crate) fn descriptions(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    /// What is shown: of each metric what there is of it.
    pub(crate) fn show(&self, values: [Vec<Metric>; N]) -> Vec<MetricFamily> {
        let families = self.rows.iter().zip(values);
        families.map(|(row, metrics)| family(row.name, row.help, row.kind, metrics)).collect()
    }
}
