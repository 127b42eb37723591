//! What is offered to a collection.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

/// One event of a collection. Nothing in it is copied when it is offered.
///
/// What stays empty is left out of what is written, unless the layout has a word for nothing.
#[derive(Clone, Debug)]
pub struct Record {
    /// Of the event. Where there is none a random one is made.
    pub id: Option<Arc<str>>,
    /// What kind of event; `azureml.inference.COLLECTION` where there is none.
    pub kind: Option<Arc<str>>,
    /// When it happened. It decides in which folder it is.
    pub time: SystemTime,
    /// `x-request-id` of the call. What is sampled is decided by it.
    pub request_id: Arc<str>,
    /// What joins it with others; the request's identifier where there is none. Records are deleted by it.
    pub correlation_id: Option<Arc<str>>,
    /// The HTTP method, of a request.
    pub method: Option<Cow<'static, str>>,
    /// Path and query, of a request.
    pub path: Option<Cow<'static, str>>,
    /// The model that was asked.
    pub model: Option<Arc<str>>,
    /// Its version; `default` is written where there is none.
    pub version: Option<Arc<str>>,
    /// Of `data`. JSON and text are in the line itself; what is neither is an object of its own.
    pub content_type: Option<Cow<'static, str>>,
    /// The body, or a table's rows: see [`Table`].
    pub data: Bytes,
    /// Whether that is only the beginning of what there was. What patterns look for may be cut in two at its end, so none of it is written where there are any.
    pub cut: bool,
    /// What else is said of it: names and values, such as `collectdatatype` and `agent` out of `ce-` headers, without that prefix. At most
    /// [`crate::Settings::attributes`] are kept, and none replaces what a field above says.
    pub attributes: Vec<(Arc<str>, Arc<str>)>,
    /// How the call ended: what the rules that always keep look at.
    pub outcome: Outcome,
    /// Of collections in [`crate::Format::Csv`], what else is known of the rows.
    pub table: Option<Table>,
}

impl Record {
    /// Of a call that went well, of which no more is said.
    pub fn new(request_id: impl Into<Arc<str>>, time: SystemTime, data: Bytes) -> Self {
        Self {
            id: None,
            kind: None,
            time,
            request_id: request_id.into(),
            correlation_id: None,
            method: None,
            path: None,
            model: None,
            version: None,
            content_type: None,
            data,
            cut: false,
            attributes: Vec::new(),
            outcome: Outcome::default(),
            table: None,
        }
    }

    /// About how many bytes it holds, with what it refers to.
    pub(crate) fn size(&self) -> usize {
        let shared = [&self.id, &self.kind, &self.correlation_id, &self.model, &self.version];
        let texts: usize = shared.into_iter().flatten().map(|text| text.len()).sum();
        let own = [&self.method, &self.path, &self.content_type];
        let texts = texts + own.into_iter().flatten().map(|text| text.len()).sum::<usize>();
        let attributes: usize =
            self.attributes.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        let table = self.table.as_ref().map_or(0, Table::size);
        size_of::<Self>() + self.data.len() + self.request_id.len() + texts + attributes + table
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The status of the answer; 400 and more is an error.
    pub status: Option<u16>,
    /// The time from the first byte of the request to the answer.
    pub latency: Option<Duration>,
}

impl Outcome {
    /// Whether the call failed.
    pub fn is_error(self) -> bool {
        self.status.is_some_and(|status| status >= 400)
    }
}

/// Rows of AzureML's v1 `ModelDataCollector`. The record's `data` is JSON: an array of rows, each an array with as many values as there are columns.
///
/// The record's `correlation_id` is what stands in `$aml_dc_correlation_id`, its `request_id` what stands in `$aml_request_id`, its `time` the
/// scoring time, by which rows go to their file.
#[derive(Clone, Debug)]
pub struct Table {
    /// What the rows are.
    pub designation: Designation,
    /// The header. Empty where none is known: then the columns are numbered from 0, as pandas does.
    pub columns: Vec<Arc<str>>,
    /// Whether the `$aml_*` columns are appended: always for inputs in the SDK, for others after `add_correlations`.
    pub correlated: bool,
    /// `subscription/group/workspace`; that of the settings where there is none.
    pub workspace: Option<Arc<str>>,
    /// The service; that of the settings where there is none.
    pub service: Option<Arc<str>>,
    /// `collection_name` of the SDK: what files of `signals` and `general` are called.
    pub name: Option<Arc<str>>,
}

impl Table {
    fn size(&self) -> usize {
        let columns: usize = self.columns.iter().map(|column| column.len() + 16).sum();
        let texts = [&self.workspace, &self.service, &self.name];
        columns + texts.into_iter().flatten().map(|text| text.len()).sum::<usize>()
    }
}

/// What rows are, in the words of the v1 SDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Designation {
    /// What a model was given.
    Inputs,
    /// What it answered.
    Predictions,
    /// What would have been right.
    Labels,
    /// What says how good it was.
    Signals,
    /// Anything: what `default` means, too.
    General,
}

impl Designation {
    /// By its name in the SDK.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "inputs" => Self::Inputs,
            "predictions" => Self::Predictions,
            "labels" => Self::Labels,
            "signals" => Self::Signals,
            "general" | "default" => Self::General,
            _ => return None,
        })
    }

    /// Its name in paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inputs => "inputs",
            Self::Predictions => "predictions",
            Self::Labels => "labels",
            Self::Signals => "signals",
            Self::General => "general",
        }
    }
}
