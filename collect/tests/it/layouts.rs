//! How records look in blob.

use std::sync::Arc;
use std::time::Duration;

use outrigger_collect::{
    CollectionSettings, Designation, Format, Full, Kept, Outcome, Reason, Redaction, Rolling, Sync, Table,
};
use serde_json::{Value, json};

use crate::support::{LONG, Moody, balance, open, record, settings};

fn of(format: Format) -> CollectionSettings {
    CollectionSettings { format, ..CollectionSettings::default() }
}

#[tokio::test]
async fn events_are_lines_of_the_documented_fields() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let collections = open(settings(dir.path(), of(Format::Events)), store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    let mut request = record("first", "[ {\"a\": 1.50},\n {\"b\":\" x\\n\"} ]");
    request.kind = Some("azureml.inference.request".into());
    request.method = Some("POST".into());
    request.path = Some("/score?x=1".into());
    request.correlation_id = Some("corr".into());
    request.version = Some("3".into());
    request.content_type = Some("application/json".into());
    request.attributes = vec![
        ("collectdatatype".into(), "pandas.core.frame.DataFrame".into()),
        ("agent".into(), "azureml-ai-monitoring/1.0.0".into()),
        ("id".into(), "forged".into()),
    ];
    request.outcome = Outcome { status: Some(200), latency: Some(Duration::from_micros(1500)) };
    let _ = collection.offer(request);
    let mut text = record("second", "a \"text\"");
    text.content_type = Some("text/plain".into());
    let _ = collection.offer(text);
    let _ = collection.offer(record("empty", ""));
    let _ = collection.offer(record("no JSON", "{\"a\":"));
    let mut image = record("image", vec![0x89, b'P', b'N', b'G', 0]);
    image.content_type = Some("image/png".into());
    let _ = collection.offer(image);
    let large = format!("[{}]", "1,".repeat(20_000) + "1");
    let _ = collection.offer(record("large", large.clone()));
    assert!(collections.flush(LONG).await);
    let counts = collection.counts();
    balance(&counts);
    assert_eq!((counts.persisted, counts.pending), (6, 0));

    let objects = store.objects().await;
    let folder = "modelDataCollector/iris/blue/c/2026/11/30/08/";
    assert!(objects.keys().all(|name| name.starts_with(folder)), "{:?}", objects.keys());
    let stem = format!("{folder}{}-0", collections.instance());
    let lines: Vec<Value> = std::str::from_utf8(&objects[&format!("{stem}.jsonl")])
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(
        lines[0],
        json!({
            "specversion": "1.0", "id": "first", "source": "/endpoints/iris/deployments/blue", "type": "azureml.inference.request",
            "datacontenttype": "application/json", "time": "2026-11-30T08:00:00Z", "data": [{"a": 1.5}, {"b": " x\n"}],
            "path": "/score?x=1", "method": "POST", "contentrange": "bytes 0-29/30", "correlationid": "corr", "xrequestid": "first",
            "modelversion": "3", "status": 200, "latencyms": 1.5, "collectdatatype": "pandas.core.frame.DataFrame",
            "agent": "azureml-ai-monitoring/1.0.0",
        })
    );
    assert_eq!((&lines[1]["data"], &lines[1]["correlationid"]), (&json!("a \"text\""), &json!("second")));
    assert_eq!(
        (&lines[1]["type"], &lines[1]["modelversion"]),
        (&json!("azureml.inference.c"), &json!("default"))
    );
    assert_eq!((&lines[2]["data"], &lines[2]["contentrange"]), (&Value::Null, &json!("*")));
    assert_eq!(lines[3]["data"], json!("{\"a\":"));
    // What is no text, or large, is an object of its own.
    let side = |line: &Value| {
        assert_eq!(line["datainblob"], json!(true));
        let url = line["data"].as_str().expect("a URL").to_owned();
        objects[url.strip_prefix("mem://data/").expect("it is in the target")].clone()
    };
    assert_eq!(&side(&lines[4])[..], [0x89, b'P', b'N', b'G', 0]);
    assert_eq!(side(&lines[5]), large);
    assert_eq!(lines[5]["contentrange"], json!(format!("bytes 0-{}/{}", large.len() - 1, large.len())));
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

fn table(designation: Designation, columns: &[&str], correlated: bool) -> Table {
    Table {
        designation,
        columns: columns.iter().map(|name| Arc::from(*name)).collect(),
        correlated,
        workspace: Some("Sub/RG/Work Space".into()),
        service: Some("iris".into()),
        name: None,
    }
}

/// What Python has to say of it: `csv.writer` of rows `[1, 2.5, 'a,b', None, True, 'say "x"\r\n', '']` and its like, with the header before.
#[tokio::test]
async fn tables_are_what_pythons_csv_writes() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let collection = CollectionSettings { rolling: Rolling::Day, ..of(Format::Csv) };
    let collections = open(settings(dir.path(), collection), store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    let mut inputs = record(
        "req",
        r##"[[1, 2.50, "a,b", null, true, "say \"x\"\r\n", ""], [false, 1e400, " s ", "'", "\u00fc", "#", "x"]]"##,
    );
    inputs.correlation_id = Some("user-1".into());
    inputs.model = Some("my/model".into());
    inputs.time += Duration::from_micros(250);
    inputs.table = Some(table(Designation::Inputs, &["a", "b,", "c", "d", "e", "f", "g"], true));
    let _ = collection.offer(inputs.clone());
    inputs.data = "[[1,2,3,4,5,6,7]]".into();
    let _ = collection.offer(inputs.clone());
    // Another header is another file; without names columns are numbered.
    inputs.data = "[[1, \"\"]]".into();
    inputs.table = Some(table(Designation::Inputs, &[], true));
    let _ = collection.offer(inputs.clone());
    inputs.table = Some(table(Designation::Predictions, &["p"], false));
    inputs.data = "[[\"\"],[0.25]]".into();
    let _ = collection.offer(inputs.clone());
    let mut named = table(Designation::General, &["p"], false);
    named.name = Some("../odd name".into());
    inputs.table = Some(named);
    inputs.data = "[]".into();
    let _ = collection.offer(inputs.clone());
    // What is no table of that header is dropped.
    inputs.data = "[[1],[1,2]]".into();
    let _ = collection.offer(inputs.clone());
    inputs.data = "{}".into();
    let _ = collection.offer(inputs.clone());
    inputs.table = None;
    let _ = collection.offer(inputs);
    assert!(collections.flush(LONG).await);
    let counts = collection.counts();
    balance(&counts);
    assert_eq!((counts.persisted, counts.dropped(Reason::Invalid)), (5, 3));

    let objects = store.objects().await;
    let instance = collections.instance();
    let base = "modeldata/sub/rg/work_space/iris/my_model/default";
    let text =
        |name: &str| std::str::from_utf8(&objects[&format!("{base}/{name}.csv")]).expect("text").to_owned();
    let correlations = "user-1,2026-11-30T08:00:00.000250,1440,sub/rg/work space,iris,my/model,default,req";
    let names = "$aml_dc_correlation_id,$aml_dc_scoring_timestamp,$aml_dc_boundary,$aml_workspace,$aml_service_name,$aml_model_name,\
                 $aml_model_version,$aml_request_id";
    assert_eq!(
        text(&format!("inputs/2026/11/30/inputs-{instance}-0")),
        format!(
            "a,\"b,\",c,d,e,f,g,{names}\r\n1,2.50,\"a,b\",,True,\"say \"\"x\"\"\r\n\",,{correlations}\r\n\
             False,1e400, s ,',ü,#,x,{correlations}\r\n1,2,3,4,5,6,7,{correlations}\r\n"
        )
    );
    assert_eq!(
        text(&format!("inputs/2026/11/30/inputs-{instance}-1")),
        format!("0,1,{names}\r\n1,,{correlations}\r\n")
    );
    assert_eq!(text(&format!("predictions/2026/11/30/predictions-{instance}-2")), "p\r\n\"\"\r\n0.25\r\n");
    assert_eq!(text(&format!("general/2026/11/30/.._odd_name-{instance}-3")), "p\r\n");
    assert_eq!(objects.len(), 4);
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test]
async fn columns_have_what_lines_have() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let collections = open(settings(dir.path(), of(Format::Parquet)), store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    for id in 0..100 {
        let _ = collection.offer(record(id, format!("[{id}]")));
    }
    assert!(collections.flush(LONG).await);
    assert_eq!(collection.counts().persisted, 100);
    let objects = store.objects().await;
    let mut size = 0;
    for (name, object) in &objects {
        assert!(
            name.starts_with("modelDataCollector/iris/blue/c/2026/11/30/08/") && name.ends_with(".parquet")
        );
        assert!(object.starts_with(b"PAR1") && object.ends_with(b"PAR1"));
        size += object.len();
    }
    assert!(size > 0);
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test]
async fn what_is_redacted_is_not_on_the_disk_either() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let redaction = Redaction { deny: vec!["/secret".into()], ..Redaction::default() };
    let full = Full::Block(LONG);
    let collection = CollectionSettings { redaction, full, sync: Sync::Always, ..of(Format::Events) };
    let mut settings = settings(dir.path(), collection);
    settings.flush_interval = LONG;
    let collections = open(settings, store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    assert_eq!(collection.offer(record(1, r#"{"secret":"hush","a":1}"#)).kept().await, Kept::Logged);
    assert_eq!(
        collection.offer(record(2, r#"{"secret":"hush""#)).kept().await,
        Kept::Dropped(Reason::Redaction)
    );
    let mut found = 0;
    for entry in std::fs::read_dir(dir.path().join("logs/c")).expect("a folder") {
        let bytes = std::fs::read(entry.expect("an entry").path()).expect("a file");
        assert!(!bytes.windows(4).any(|window| window == b"hush"));
        found += bytes.windows(5).filter(|window| window == b"\"a\":1").count();
    }
    assert_eq!(found, 1);
    balance(&collection.counts());
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test]
async fn all_records_of_a_call_are_kept_or_none() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let sampled = CollectionSettings { sampling: 0.3, keep_errors: true, ..of(Format::Events) };
    let mut settings = settings(dir.path(), sampled.clone());
    settings.collections.insert("response".into(), sampled);
    let collections = open(settings, store.target()).await;
    let (one, other) =
        (collections.collection("c").expect("it"), collections.collection("response").expect("it"));
    for id in 0..400 {
        let mut record = record(id, "1");
        record.outcome.status = Some(if id % 40 == 0 { 500 } else { 200 });
        let wanted = one.decide(&record.request_id, record.outcome);
        assert!(wanted || id % 40 != 0);
        for collection in [one, other] {
            let kept = collection.offer(record.clone()).kept().await;
            assert_eq!(kept, if wanted { Kept::Queued } else { Kept::SampledOut });
        }
    }
    assert!(collections.flush(LONG).await);
    balance(&one.counts());
    assert!(one.counts().sampled_out > 200 && one.counts().persisted > 60);
    assert_eq!(one.counts(), other.counts());
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test]
async fn attributes_and_headers_are_bounded() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let mut settings = settings(dir.path(), of(Format::Events));
    settings.attributes = 2;
    settings.record_bytes = 4 << 20;
    settings.collections.values_mut().for_each(|of| of.disk_bytes = 1 << 30);
    settings.collections.insert("tables".into(), of(Format::Csv));
    let collections = open(settings, store.target()).await;
    let mut many = record("many", "1");
    let long = "x".repeat(1025);
    let attributes = [("long", long.as_str()), (&long, "x"), ("a", "1"), ("a", "2"), ("b", "3"), ("c", "4")];
    many.attributes = attributes.iter().map(|(name, value)| (Arc::from(*name), Arc::from(*value))).collect();
    let _ = collections.collection("c").expect("it is there").offer(many);
    let tables = collections.collection("tables").expect("it is there");
    let wide = |columns: usize, name: &str| {
        let names = vec![name; columns];
        let mut record = record("wide", format!("[[{}]]", vec!["1"; columns].join(",")));
        record.table = Some(table(Designation::Inputs, &names, false));
        let _ = tables.offer(record);
    };
    wide(16_384, "x");
    wide(16_385, "x");
    wide(300, &"x".repeat(1000));
    assert!(collections.flush(LONG).await);
    assert_eq!((tables.counts().persisted, tables.counts().dropped(Reason::Invalid)), (1, 2));
    let objects = store.objects().await;
    let (_, line) = objects.iter().find(|(name, _)| name.ends_with(".jsonl")).expect("it is there");
    let line: Value = serde_json::from_slice(line).expect("JSON");
    assert_eq!(
        (&line["a"], &line["b"], &line["c"], &line["long"]),
        (&json!("1"), &json!("3"), &Value::Null, &Value::Null)
    );
    assert_eq!(collections.stop(LONG).await.pending, 0);
}
