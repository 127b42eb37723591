//! Writes what fuzzing begins with into `fuzz/corpus`, beside what is there: `cargo run --manifest-path fuzz/Cargo.toml --example seeds`.
//!
//! A target that is new here gets a line or more; with nothing to begin with it takes long until an input gets anywhere.

use std::fs;
use std::io::{Cursor, Write as _};
use std::path::PathBuf;

use bytes::Bytes;
use outrigger_backend::{DataType, Shape, Tensor};
use outrigger_protocol::{keda, knative, orca};
use outrigger_runtime::config::key;
use outrigger_runtime::scripts::frame::{HEADER, Header, Kind, Reference};
use outrigger_runtime::scripts::tensors::encode_tensors;
use outrigger_store::manifest::ManifestFile;
use outrigger_store::signature::SigningKey;
use outrigger_store::{Digest, FilePath, Manifest};
use outrigger_testkit::{onnx, torchscript};
use prost::Message as _;
use zip::write::SimpleFileOptions;

/// Of the tests of `store/src/signature.rs`.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n-----END PRIVATE KEY-----\n";
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAPUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=\n-----END PUBLIC KEY-----\n";

/// Seeds of a target, each with what goes before it.
struct Seeds(PathBuf, u32);

impl Seeds {
    fn of(target: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder, 0)
    }

    fn add(&mut self, before: &[u8], seed: impl AsRef<[u8]>) {
        let name = format!("seed-{}", self.1);
        self.1 += 1;
        fs::write(self.0.join(name), [before, seed.as_ref()].concat()).expect("a file");
    }
}

fn main() {
    protocol();
    tokens();
    scripts();
    devices();
    configuration();
    store();
    collect();
    archives();
    models();
}

fn protocol() {
    let mut seeds = Seeds::of("oip_infer");
    // One FP32 input `a` of one free dimension, and then one of each type with two.
    seeds.add(
        &[0, 11, 1, 1],
        r#"{"id":"7","inputs":[{"name":"a","datatype":"FP32","shape":[3],"data":[1,-2.5,3e-3]}],"outputs":[{"name":"a"}]}"#,
    );
    for (number, data_type) in DataType::ALL.into_iter().enumerate() {
        let (name, values) =
            (data_type.name(), if data_type == DataType::Bool { "true,false" } else { "0,1" });
        let body = format!(
            r#"{{"inputs":[{{"data":[[{values}]],"parameters":{{"x":[null]}},"shape":[1,2],"name":"a","datatype":"{name}"}}]}}"#
        );
        seeds.add(&[0, number as u8, 2, 2, 1], body);
    }
    let two = r#"{"inputs":[{"name":"b\u0022","shape":[2],"datatype":"INT8","data":[1,2]},{"name":"a","shape":[],"datatype":"UINT8","data":[7]}]}"#;
    let place = |wanted| DataType::ALL.into_iter().position(|known| known == wanted).expect("a type") as u8;
    seeds.add(&[1, place(DataType::Uint8), 0, place(DataType::Int8), 1, 5], two);

    // Two inputs of each type with one free dimension, as bytes.
    let mut seeds = Seeds::of("oip_binary");
    for (number, data_type) in DataType::ALL.into_iter().enumerate() {
        let size = data_type.size().unwrap_or(5);
        let (name, number) = (data_type.name(), number as u8);
        let input = |input: &str| {
            format!(
                r#"{{"name":"{input}","datatype":"{name}","shape":[1],"parameters":{{"binary_data_size":{size}}}}}"#
            )
        };
        let json = format!(r#"{{"inputs":[{},{}]}}"#, input("a"), input("b"));
        let behind =
            if data_type == DataType::Bytes { [1, 0, 0, 0, 65].repeat(2) } else { vec![1; 2 * size] };
        let before = [number, 1, 1, number, 1, 1, (json.len() / 4) as u8, (json.len() % 4) as u8];
        seeds.add(&before, [json.as_bytes(), &behind].concat());
    }
    messages();

    let mut seeds = Seeds::of("inflate");
    // Of gzip and of zlib: whole, and twice as it would come, of which one is cut short.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&[b'x'; 3000]).expect("memory is there");
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(b"some text, and some text").expect("memory is there");
    let (gzip, zlib) = (gzip.finish().expect("memory is there"), zlib.finish().expect("memory is there"));
    for (kind, body) in [(0, gzip), (1, zlib)] {
        seeds.add(&[kind, 0, 64, 100, 200, 255], "the same again, ");
        seeds.add(&[kind, 1, 64, 100, 200], &body);
        seeds.add(&[kind, 1, 1, 1, 200], &body[..body.len() - 1]);
    }

    let mut seeds = Seeds::of("instances");
    let number = |wanted| DataType::ALL.into_iter().position(|known| known == wanted).expect("a type") as u8;
    let (single, bytes) = (number(DataType::Fp32), number(DataType::Bytes));
    seeds.add(&[0, single, 1, 1], r#"{"instances":[1,2.5,-3e-3]}"#);
    seeds.add(&[0, single, 2, 1, 2], r#"{"instances":[[1,2],[3,4]],"parameters":{"a":[null]}}"#);
    seeds.add(&[0, bytes, 1, 1], r#"{"instances":["a",{"b64":"/wA="}]}"#);
    seeds.add(
        &[1, single, 1, 1, bytes, 2, 1, 5],
        r#"{"instances":[{"a":1,"b":["x","y"]},{"b":["",{"b64":"YQ=="}],"a":2}]}"#,
    );

    let mut seeds = Seeds::of("oip_numbers");
    for (number, text) in [
        "true",
        "18446744073709551615",
        "-128",
        "1e-7",
        "16777217",
        "65519.99",
        "3.4028235677973366e38",
        "-0.0",
    ]
    .into_iter()
    .enumerate()
    {
        (0..3).for_each(|more| seeds.add(&[(number * 2 + more) as u8 % 14], text));
    }

    let mut seeds = Seeds::of("request_headers");
    let header = |name: u8, value: &str| [&[name, value.len() as u8][..], value.as_bytes()].concat();
    seeds.add(&[], [header(0, "a"), header(1, "b"), header(2, "c")].concat());
    seeds.add(&[], [header(3, "250"), header(4, "low"), header(6, "json")].concat());
    seeds.add(&[], header(5, "text/html, application/protobuf;q=0.9"));

    let mut seeds = Seeds::of("modeldata");
    let rows = r#"{"designation":"inputs","file":"inputs","workspace":"a/b/c","service":"s","model":"m","version":"1","correlated":true,"time":1500000,"correlation_id":"c","request_id":"r","columns":["a"],"rows":[["1"],["x"]]}"#;
    seeds.add(&[0], rows);
    seeds.add(&[0], r#"{"designation":"general","model":"m","version":"1","rows":[]}"#);
    let event =
        [header(0, "azureml.inference.a"), header(1, "1700000000"), header(2, "id"), header(4, "agent/1")];
    seeds.add(&[1], event.concat());
    seeds.add(&[1], [header(0, "azureml.inference.a"), header(7, "my-own"), header(5, "x")].concat());

    let mut seeds = Seeds::of("scalers");
    let report_interval = Some(orca::Interval { seconds: 1, nanos: 500_000_000 });
    seeds.add(&[0], orca::LoadReportRequest { report_interval }.encode_to_vec());
    let named_metrics = [("slots".to_owned(), 4.0)].into();
    seeds.add(&[1], orca::LoadReport { eps: 0.5, named_metrics, ..Default::default() }.encode_to_vec());
    seeds.add(
        &[2],
        knative::Stat { pod_name: "p".into(), request_count: 1.5, ..Default::default() }.encode_to_vec(),
    );
    let settings = [("utilisation", "0.7"), ("activeFor", "60")];
    let object = keda::ScaledObjectRef {
        name: "n".into(),
        namespace: "s".into(),
        scaler_metadata: settings.map(|(name, value)| (name.into(), value.into())).into(),
    };
    seeds.add(&[4], object.encode_to_vec());
    let request = keda::GetMetricsRequest { scaled_object_ref: Some(object), metric_name: "m".into() };
    seeds.add(&[3], request.encode_to_vec());

    let mut seeds = Seeds::of("aml");
    seeds.add(&[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 3, 0], "a \"quoted\"\nline");
    let ready = r#"{"mode":"schema","kind":"async","headers":"some","methods":["GET","POST"],"python":"3.11","script":"score.py","swagger":{"2":{"input":{"type":"object"},"output":null},"3":null,"3.1":{}},"sample":{"a":1}}"#;
    seeds.add(&[0; 12], ready);
    seeds.add(&[0; 12], r#"{"phase":"init","message":"m","traceback":"t"}"#);

    let mut seeds = Seeds::of("keys");
    let (one, two) = ("k".repeat(22), "or_01234567.abcdefghijklmnopqrstuvwxyz");
    seeds.add(&[], format!("# keys\nprimary = \"{one}\"\nsecondary = \"{two}\"\n"));
    seeds.add(&[], format!("primary = '{one}'"));
    seeds.add(&[], two);
    seeds.add(&[], "Bearer or_01234567.abcdefghijklmnopqrstuvwxyz");
    seeds.add(&[], "bEARER   or_89abcdef.zyxwvutsrqponmlkjihgfedcba ");
    let (hash_key, hash) = ("A".repeat(43), "0".repeat(64));
    let store = format!("version = 1\nhash_key = \"{hash_key}\"\n");
    let key = format!(
        "[[keys]]\nprincipal = \"bob\"\nwhich = \"primary\"\nid = \"or_01234567\"\nhash = \"{hash}\"\nmade = 1\nexpires = 2\n"
    );
    seeds.add(&[], store.clone());
    seeds.add(&[], format!("{store}{key}"));
    seeds.add(&[], format!("{store}{key}{key}"));
}

/// Tokens, and what issuers publish.
fn tokens() {
    let mut seeds = Seeds::of("tokens");
    let (header, claims) = (
        r#"{"alg":"EdDSA","kid":"k","typ":"at+jwt"}"#,
        r#"{"iss":"https://issuer.example","aud":["x","service"],"sub":"bob","exp":1800000600,"nbf":1.8e9,"iat":1800000000,"scope":"a b","roles":["c"]}"#,
    );
    let piece = |header: &str| [&[1, header.len() as u8], header.as_bytes()].concat();
    seeds.add(&[0], "eyJhbGciOiJFZERTQSIsImtpZCI6ImsifQ.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIn0.AAAA");
    seeds.add(&[0], "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIn0.");
    seeds.add(&piece(header), claims);
    seeds.add(&piece(r#"{"alg":"EdDSA"}"#), claims);
    seeds.add(&piece(r#"{"alg":"EdDSA","jku":"https://a","crit":["exp"]}"#), claims);
    seeds.add(&piece(r#"{"alg":"HS256","kid":"../k"}"#), claims);
    seeds.add(&[2, 40], "x");
    let rsa = format!(r#"{{"kty":"RSA","use":"sig","kid":"r","n":"{}","e":"AQAB"}}"#, "q".repeat(342));
    let point = "A".repeat(43);
    let ec = format!(r#"{{"kty":"EC","crv":"P-256","alg":"ES256","x":"{point}","y":"{point}"}}"#);
    let ed = format!(r#"{{"kty":"OKP","crv":"Ed25519","key_ops":["verify"],"x":"{point}"}}"#);
    seeds.add(&[3], format!(r#"{{"keys":[{rsa},{ec},{ed}]}}"#));
    seeds.add(&[3], r#"{"issuer":"https://issuer.example","jwks_uri":"https://issuer.example/jwks"}"#);
}

/// Messages of gRPC's.
fn messages() {
    use outrigger_protocol::oip::messages::ModelInferRequest;
    use outrigger_protocol::oip::messages::inference::InferTensorContents;
    use outrigger_protocol::oip::messages::inference::model_infer_request::InferInputTensor;

    let mut seeds = Seeds::of("grpc_infer");
    for (number, data_type) in DataType::ALL.into_iter().enumerate() {
        let number = number as u8;
        let input = |name: &str, contents| InferInputTensor {
            name: name.into(),
            datatype: data_type.name().into(),
            shape: vec![1],
            contents,
            ..Default::default()
        };
        let raw =
            if data_type == DataType::Bytes { vec![0; 4] } else { vec![1; data_type.size().unwrap_or(1)] };
        let mut request = ModelInferRequest {
            model_name: "m".into(),
            id: "7".into(),
            inputs: vec![input("a", None), input("b", None)],
            raw_input_contents: vec![raw.clone(), raw],
            ..Default::default()
        };
        let before = [1, number, 1, 1, number, 1, 1];
        seeds.add(&before, request.encode_to_vec());
        let contents = InferTensorContents {
            bool_contents: if data_type == DataType::Bool { vec![true] } else { Vec::new() },
            int_contents: if data_type.name().starts_with("INT") { vec![-1] } else { Vec::new() },
            uint_contents: if data_type.name().starts_with("UINT") { vec![1] } else { Vec::new() },
            fp32_contents: if data_type == DataType::Fp32 { vec![0.5] } else { Vec::new() },
            ..Default::default()
        };
        request.inputs = vec![input("a", Some(contents.clone())), input("b", Some(contents))];
        request.raw_input_contents.clear();
        seeds.add(&before, request.encode_to_vec());
    }

    // `a` of one FP32 in `tensor_content`, and in `float_val`.
    let mut seeds = Seeds::of("tensorflow_predict");
    let single = DataType::ALL.into_iter().position(|known| known == DataType::Fp32).expect("a type") as u8;
    let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8], bytes].concat();
    let shape = field(2, &field(2, &[8, 1]));
    for value in [field(4, &[0, 0, 0, 63]), field(5, &[0, 0, 0, 63])] {
        let tensor = [&[8, 1][..], &shape, &value].concat();
        let entry = [field(1, b"a"), field(2, &tensor)].concat();
        let spec = [field(1, b"m"), field(2, &[8, 3])].concat();
        seeds.add(&[0, single, 1, 1], [field(1, &spec), field(2, &entry), field(3, b"a")].concat());
    }
}

fn scripts() {
    let reply = |outcome: u8, status: u16, message: &[u8], rest: &[u8]| {
        let mut payload = vec![outcome, 1];
        payload.extend_from_slice(&status.to_le_bytes());
        payload.extend_from_slice(&(message.len() as u32).to_le_bytes());
        payload.extend_from_slice(&1500u64.to_le_bytes());
        [&payload, message, rest].concat()
    };
    let block = b"\x03\x00\x02\x00x-aok\x0e\x00\x01\x00content-length9";
    let mut seeds = Seeds::of("script_frames");
    for outcome in 0..7 {
        let head: &[u8] = if matches!(outcome, 4 | 5) { block } else { b"E!" };
        seeds.add(&[0], reply(outcome, 503, head, b"{}"));
    }
    seeds.add(&[1], reply(0, 0, b"", b""));
    seeds.add(&[0], b"\x1e\0\x03\0\0\0\0\0a.bhi");
    seeds.add(&[], Header::new(Kind::Reply, 3, 5).encode());
    seeds.add(&[], Reference { region: 3, offset: 64, size: 128 }.encode());
    seeds.add(&[0], block);

    let mut seeds = Seeds::of("script_tensors");
    let tensor = |data_type: DataType, extents: &[i64]| {
        let shape = Shape::new(extents).expect("a shape");
        let bytes = shape.bytes(data_type).expect("a size");
        Tensor::new(data_type, shape, Bytes::from(vec![1; bytes])).expect("a tensor")
    };
    let (x, y) = (tensor(DataType::Fp32, &[2, 3]), tensor(DataType::Int64, &[1]));
    let mut payload = b"\x06\0\0\0\0\0\0\0digits".to_vec();
    payload.resize(64, 0);
    payload.extend_from_slice(&encode_tensors(1, &[("x", &x), ("why", &y)]).concat()[HEADER..]);
    seeds.add(&[72, 0], &payload);
    // The last 72 bytes are those of the tensors.
    let (inline, tail) = payload.split_at(payload.len() - 72);
    seeds.add(&[72, 1], [tail, inline].concat());

    let mut seeds = Seeds::of("native_frames");
    let mut call = vec![1, 1, 3, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    call.extend_from_slice(&1500u64.to_le_bytes());
    call.extend_from_slice(b"rid?q\x03\0\x02\0x-abcbody");
    seeds.add(&[], call);
    seeds.add(&[], Header::new(Kind::Call, 3, 5).encode());

    let mut seeds = Seeds::of("native_answers");
    seeds.add(&[50, 0, 0], b"\x03x-a\x01b\x0ccontent-type\x0atext/plain");
    seeds.add(&[126, 0], b"\x10application/json\x01a\x01b");
    seeds.add(&[50, 0, 0], b"\x01a\x00".repeat(256));
}

fn devices() {
    let mut seeds = Seeds::of("device_frames");
    let text = |text: &str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let number = |number: u64| number.to_le_bytes().to_vec();
    let count = |count: u32| count.to_le_bytes().to_vec();
    let head = [vec![11, 1], number(2), vec![0], number(8)].concat();
    let resident =
        [vec![11, 1], number(2), vec![2], number(9), vec![2, 0, 0, 0, 0, 0, 0, 0], number(8)].concat();
    let region = [vec![11, 1], number(2), vec![1], number(0), number(64), number(8)].concat();
    let sent =
        [count(1), number(4), number(4096), vec![1], count(3), head.clone(), resident, region].concat();
    let asked =
        [count(3), number(0), vec![0], number(1), vec![1], number(2), vec![2, 11, 1], number(2)].concat();
    let settings = [count(1), text("a"), text("b")].concat();
    let hello =
        [count(1), text("/lib.so"), settings.clone(), [1, 2, 3, 4, 5, 6].map(u64::to_le_bytes).concat()];
    seeds.add(&[0], hello.concat());
    seeds.add(&[1], [number(3), number(7), sent, asked].concat());
    let announced = [count(1), number(1), number(4096), vec![1]].concat();
    seeds.add(&[2], [vec![1], announced, count(1), number(5), count(1), head].concat());
    for kind in 1..=10 {
        seeds.add(&[3, kind], [text("a"), text("b"), text("c")].concat());
    }
    let device = [text("cpu"), vec![0], number(1 << 30), count(4), vec![1]].concat();
    let info =
        [text("cpu"), text("1"), count(1), text("onnx"), count(1), device, vec![1], text("why")].concat();
    seeds.add(&[4], info);
    seeds.add(&[5], [number(1), number(2), number(3), vec![1], text("hot")].concat());
    let tensor = [text("x"), vec![11, 1], (-1i64).to_le_bytes().to_vec(), count(1), text("n")].concat();
    let model = [count(1), tensor.clone(), count(1), tensor].concat();
    let options =
        [text("/m.onnx"), vec![1], text("onnx"), vec![1], number(2), settings, model.clone()].concat();
    seeds.add(&[6], options);
    seeds.add(&[7], model);
    let mut header = vec![5, 0, 0, 0, 26, 1, 0, 0];
    header.extend_from_slice(&number(9));
    seeds.add(&[], header);
}

fn configuration() {
    let mut seeds = Seeds::of("config_file");
    // Every key once, with its default where it has one.
    let mut sections: Vec<(&str, String)> = Vec::new();
    for key in key::KEYS.iter().filter(|key| !key.default.is_empty()) {
        let (section, name) = key.name.split_once('.').unwrap_or(("", key.name));
        let value = key.kind.parse(key.default).expect("a default is a value");
        let line = format!("{name} = {value}\n");
        match sections.iter_mut().find(|(known, _)| *known == section) {
            Some((_, lines)) => lines.push_str(&line),
            None => sections.push((section, line)),
        }
    }
    for (section, lines) in &sections {
        let head = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        seeds.add(&[], format!("{head}{lines}"));
    }
    seeds.add(&[], "model_dir = 'models'\n[models.\"a.b\"]\npath = 'x.onnx'\ndevices = ['cpu:0']\nmax_batch = 8\nmax_delay = '2ms'\n");
    seeds.add(
        &[],
        "[models.a]\nsource = 'digits@stable'\n[store]\nmodels = ['az://c@a/m']\nregistry = 's3://b/m'\n",
    );
    seeds.add(&[], "[script]\nentry = 's.py'\n[callers.a]\nkey = 'kkkkkkkkkkkkkkkkkkkkkkkk'\nrate = '5/s'\noperations = ['infer']\nmodels = ['d*']\n");
    seeds.add(&[], "model_dir = '/m'\n[backends.npu]\nlibrary = 'x.so'\nsettings = ['a=b']\n[placement]\ndevices = ['npu', 'cpu']\n");
    seeds.add(&[], "model_dir = '/m'\n[residency]\nload = 'use'\n[listen]\nscore = '0.0.0.0:80'\nadmin = 'unix:/run/a'\n");

    seeds.add(
        &[],
        "model_dir = '/m'\n[limits]\nheader_timeout = '0.6us'\n[store]\nregistry = \"s3://b/\\u007f\"\n",
    );

    let mut seeds = Seeds::of("config_environment");
    seeds.add(
        &[],
        "OUTRIGGER_SCRIPT_WORKERS=3\nWORKER_COUNT=9\nAZUREML_ENTRY_SCRIPT=score.py\nAML_APP_ROOT=/app\n",
    );
    seeds.add(&[], "--script-workers 4\n--limits-body 1MiB\n--model a=b.onnx\nSCORING_TIMEOUT_MS=5\n");
    seeds.add(
        &[],
        "{\"SCORING_TIMEOUT_MS\": 60000, \"SERVICE_NAME\": \"s\", \"HOSTNAME\": true, \"NEW\": null}",
    );
}

fn collect() {
    let mut seeds = Seeds::of("collect_log");
    // Bodies of an object that begins, and of two of its records: each after its length and its kind, and then what is damaged.
    let opened = b"\x01\x03\x00a/bid,x\r\n";
    let record = b"\x01\0\0\0\0\0\0\0\x01\0\x01\0\x02\0\0\0cs1\nside";
    let of = |kind: u8, body: &[u8]| [&[body.len() as u8, kind][..], body].concat();
    let bodies = [of(0, opened), of(1, record), of(1, record), of(2, b"")].concat();
    seeds.add(&[1], [&bodies[..], &[0, 0, 0]].concat());
    seeds.add(&[1], [&bodies[..], &[70, 0, 255]].concat());
    seeds.add(&[0], b"OTRCOLL\x01\x07\0\0\0\0\0\0\0");

    let mut seeds = Seeds::of("collect_redaction");
    seeds.add(&[], r#"{"a":{"b":"x","c":[1]},"c":[1,{"b":2}],"d":{"b":{"a":null},"e":-1.5e3}}"#);
    seeds.add(&[], r#" [ {"b" : "\u0031234", "12345": 1234567 } , [true, false, "a longer text"], {} ] "#);
    seeds.add(&[], r#"{"\u0061":1,"a":2,"a":[[[]]]}"#);

    let mut seeds = Seeds::of("collect_erasure");
    seeds.add(
        &[],
        "{\"correlationid\":\"ann\",\"data\":{\"a\":1}}\n{\"correlationid\":\"bob\",\"data\":null}\n{\"data\":1}\n\n",
    );
    seeds.add(
        &[],
        "text,$aml_dc_correlation_id\r\n\"a\nb\",ann\r\nc,bob\r\n\"d, \"\"e\"\"\",\"ann-6f1c2a9e-3c1f-4a9e-9a55-0f4b1d2c3e4f\"\r\n",
    );

    let mut seeds = Seeds::of("collect_lines");
    seeds.add(b"r\0/score\x003\0\0\0", "{\"data\": [[1.5, 2],\n [3e3, null]]}");
    seeds.add(b"a\0b\0c\0\0\0", r#"[["x,y", 1, true], ["\"", null, ""]]"#);
    seeds.add(b"a\0b,\0\"c\0d\0e\0", "[[1,2,3,4,5]]");
    seeds.add(b"a\0b\0c\0\0\0", [0xff, 0xd8]);
}

fn store() {
    let file = |path: &str, unpack| ManifestFile {
        path: FilePath::new(path).expect("a path"),
        size: 3,
        sha256: Digest::of(path.as_bytes()),
        unpack,
    };
    let files = vec![file("digits/z.bin", false), file("more.TGZ", true)];
    let tags = [("team".to_owned(), "vision".to_owned())].into();
    let manifest = Manifest::new("digits:3".parse().expect("an id"), "d".into(), tags, files);
    let manifest = manifest.expect("a manifest").to_bytes();
    let mut seeds = Seeds::of("store_manifest");
    seeds.add(&[], &manifest);
    seeds.add(&[], r#"{"outrigger": 2, "news": []}"#);

    let mut seeds = Seeds::of("store_index");
    seeds.add(
        &[],
        r#"{"format":1,"objects":[{"path":"digits/3/outrigger-manifest.json","tag":"0x8DB","text":"{}"},{"path":"a/labels/b","tag":"","text":"1"}]}"#,
    );
    for path in ["digits/3/a/b.onnx", "digits/labels/stable", "3/a", "labels/stable", "digits/03/a"] {
        seeds.add(&[], path);
    }

    let mut seeds = Seeds::of("store_names");
    for name in [
        "digits:3",
        "digits@stable",
        "digits",
        "a/b/c.bin",
        "…/é.TGZ",
        "../a",
        "stable-1",
        "9007199254740992",
    ] {
        seeds.add(&[], name);
    }
    seeds.add(&[], Digest::of(b"").to_string());

    let key = SigningKey::from_pem(KEY).expect("a key");
    let mut seeds = Seeds::of("store_signatures");
    seeds.add(&[0], key.sign(b"manifest"));
    seeds.add(&[0], format!("\n{}{}", key.sign(b"other"), key.sign(b"manifest")));
    seeds.add(&[1], "manifest");
    seeds.add(&[2], KEY);
    seeds.add(&[2], PUBLIC_KEY);

    let mut seeds = Seeds::of("store_locations");
    for text in [
        "https://me:secret@host/models?sig=x y",
        "az://container@account/a",
        "s3://id:key@b/m#f",
        "host:8080/a",
        "AccountName=a;AccountKey=a2V5PT0=;BlobEndpoint=http://127.0.0.1:1/a;",
        "other\n# mine\n[default]\naws_access_key_id = A\n[ other ]\nAWS_SECRET_ACCESS_KEY=a=b\n",
    ] {
        seeds.add(&[], text);
    }
}

fn archives() {
    let tar = |files: &[(&str, &[u8])]| {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, contents) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *contents).expect("memory is there");
        }
        tar.into_inner().expect("memory is there")
    };
    let long = format!("{}/x", "d".repeat(120));
    let tars = [tar(&[("a/b.bin", b"abc"), ("c", b"")]), tar(&[(&long, b"abc")]), pax()];
    let mut seeds = Seeds::of("archive_tar");
    tars.iter().for_each(|tar| seeds.add(&[1], &tar[..tar.len() - 1024]));
    seeds.add(&[], &tars[0]);
    let mut seeds = Seeds::of("archive_tar_gz");
    tars.iter().for_each(|tar| seeds.add(&[1], &tar[..tar.len() - 1024]));
    for tar in &tars {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(tar).expect("memory is there");
        seeds.add(&[], gzip.finish().expect("memory is there"));
    }

    let zip = |options: SimpleFileOptions, files: &[(&str, &[u8])]| {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, contents) in files {
            match name.strip_suffix('/') {
                Some(folder) => zip.add_directory(folder, options).expect("a folder"),
                None => {
                    zip.start_file(*name, options).expect("a file");
                    zip.write_all(contents).expect("memory is there");
                }
            }
        }
        zip.finish().expect("memory is there").into_inner()
    };
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let deflated = stored.compression_method(zip::CompressionMethod::Deflated);
    let mut seeds = Seeds::of("archive_zip");
    seeds.add(&[], zip(stored, &[("a/", b""), ("a/b", b"abc"), ("é", b"")]));
    seeds.add(&[], zip(deflated, &[("a", &[b'a'; 300]), ("b", b"abc")]));
    seeds.add(&[], zip(stored.large_file(true), &[("a", b"abc")]));
    seeds.add(&[], zip(stored, &[]));
}

/// A file whose name and size come from PAX, behind a global header.
fn pax() -> Vec<u8> {
    let mut tar = Vec::new();
    let mut member = |kind: tar::EntryType, name: &str, contents: &[u8], size: u64| {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).expect("a path");
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(contents);
        tar.resize(tar.len().next_multiple_of(512), 0);
    };
    let (global, own) = (b"12 comment=\n", b"12 path=pax\n9 size=3\n");
    member(tar::EntryType::XGlobalHeader, "g", global, global.len() as u64);
    member(tar::EntryType::XHeader, "h", own, own.len() as u64);
    member(tar::EntryType::Regular, "short", b"abc", 0);
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn models() {
    let mut seeds = Seeds::of("model_manifest");
    seeds.add(&[], "name = 'm'\nversion = 3\nformat = 'onnx'\nfile = 'a.onnx'\ndevices = ['cpu']\nfallback = false\ninstances = 2\nmax_batch = 8\nmax_delay = '2ms'\nintra_threads = 1\nsteps = 'cpu'\nsettings = ['a=b']\n");
    seeds.add(&[], "[[inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = ['n', -1, 3]\n[[samples]]\nrequest = 'b.json'\nexpect = 'c/d.json'\nrtol = 1e-3\natol = 0\n");
    let image = "[[inputs]]\nname = 'image'\ndatatype = 'UINT8'\nshape = ['n', 'h', 'w', 3]\n[[outputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = [-1]\n";
    let before = "[[before]]\nstep = 'resize'\nfrom = 'image'\nheight = 2\nwidth = 3\nmode = 'nearest'\n[[before]]\nstep = 'normalize'\nscale = 0.5\nmean = [0.1]\nstd = [0.2]\n[[before]]\nstep = 'layout'\nlayout = 'NCHW'\nto = 'x'\n";
    seeds.add(&[], format!("{image}{before}"));

    let mut seeds = Seeds::of("steps");
    let place = |wanted| DataType::ALL.into_iter().position(|known| known == wanted).expect("a type") as u8;
    let (bytes, floats, integers) = (place(DataType::Uint8), place(DataType::Fp32), place(DataType::Int64));
    seeds.add(&[0, bytes, 4, 1, 5, 5, 6, 2], before);
    seeds.add(&[0, bytes, 4, 4, 7, 8, 6, 3], before.replace("nearest", "bilinear"));
    seeds.add(&[0, floats, 2, 1, 8, 3], "[[before]]\nstep = 'softmax'\naxis = -1\n[[before]]\nstep = 'top_k'\nk = 2\nindices = 'best'\n[[after]]\nstep = 'convert'\ndatatype = 'BF16'\n");
    seeds.add(&[1, floats, 2, 5, 5, integers, 1, 5, 2], "[[before]]\nstep = 'gather'\nfrom = 'image'\nindices = 'i'\n[[before]]\nstep = 'scatter'\nfrom = 'image'\nindices = 'i'\nrows = 4\n");
    seeds.add(
        &[0, floats, 1, 8, 3],
        "[[before]]\nstep = 'convert'\ndatatype = 'INT32'\n[[before]]\nstep = 'convert'\ndatatype = 'FP16'\n",
    );

    let mut seeds = Seeds::of("onnx_model");
    for model in [onnx::add(2), onnx::mlp(&[2, 2]), onnx::convolution(), onnx::twice_in_halves()] {
        seeds.add(&[], model);
    }

    let mut seeds = Seeds::of("torch_archive");
    for model in [torchscript::add(), torchscript::mlp(&[2, 2])] {
        seeds.add(&[], model.archive());
    }
    let mut seeds = Seeds::of("torch_pickle");
    for model in [torchscript::mlp(&[2, 2]), torchscript::non_zero()] {
        seeds.add(b"p", model.pickle());
        seeds.add(b"c", model.code());
    }
}
