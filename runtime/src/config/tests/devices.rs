//! What is said of models, backends and devices.

use super::*;

#[test]
fn models_batch_only_where_that_is_said() {
    let file = "\
[models.plain]
path = 'a.onnx'
[models.wide]
path = 'b.onnx'
max_batch = 32
max_delay = '500us'
[models.clever]
path = 'c.onnx'
max_batch = 8
max_delay = 'auto'
";
    let (config, settings) = load(&sources(file, &[])).unwrap();
    let said = |name: &str| (config.models[name].max_batch, config.models[name].max_delay);
    assert_eq!(said("plain"), (None, None));
    assert_eq!(said("wide"), (Some(32), Some(BatchDelay::AtMost(Duration::from_micros(500)))));
    assert_eq!(said("clever"), (Some(8), Some(BatchDelay::Auto)));
    assert!(settings.show().contains("max_delay = \"auto\""));
    let mistakes = problems(&sources("[models.m]\npath = 'a'\nmax_batch = 1025\nmax_delay = 'soon'", &[]));
    for text in
        ["`models.m.max_batch` is `1025`", "`models.m.max_delay` is \"soon\", expected a time with its unit"]
    {
        assert!(mistakes.iter().any(|mistake| mistake.contains(text)), "{text} not in {mistakes:#?}");
    }
}

#[test]
fn backends_have_tables_and_models_lists_of_devices() {
    let file = "\
[placement]
devices = ['cuda:1', 'cpu']
fallback = false
[backends]
cpu_threads = 3
[backends.cpu]
threads = 2
memory = '1GiB'
settings = ['cache=/var/cache/outrigger', 'affinity=0-3']
[backends.ours]
library = 'lib/ours.so'
process = 'in'
[backends.gpu]
max_calls = 8
max_call_bytes = '1GiB'
spin = '0s'
load_timeout = '20m'
quarantine_deaths = 3
[models.a]
path = 'a.onnx'
devices = ['ours', 'cpu']
fallback = true
instances = 4
settings = ['affinity = 0-1']
";
    let (config, settings) = load(&sources(file, &[])).unwrap();
    let wishes = |wishes: &[DeviceWish]| wishes.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(wishes(&config.placement.devices), ["cuda:1", "cpu"]);
    assert!(!config.placement.fallback);
    let cpu = config.backends.of("cpu");
    assert_eq!((config.backends.cpu_threads, cpu.threads, cpu.memory), (3, Some(2), Some(1 << 30)));
    let pairs = [("cache", "/var/cache/outrigger"), ("affinity", "0-3")];
    assert_eq!(cpu.settings, pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let process = ["cpu", "cuda", "ours"].map(|name| config.backends.process(name));
    assert_eq!(process, [ProcessKind::In, ProcessKind::Out, ProcessKind::In]);
    assert_eq!(config.backends.of("ours").library.as_deref(), Some(Path::new("/etc/lib/ours.so")));
    let model = &config.models["a"];
    assert_eq!(wishes(model.devices.as_ref().unwrap()), ["ours", "cpu"]);
    assert_eq!((model.fallback, model.instances), (Some(true), Some(4)));
    assert_eq!(model.settings, [("affinity".to_owned(), "0-1".to_owned())]);
    let gpu = config.backends.of("gpu").host;
    assert_eq!((gpu.max_calls, gpu.limits.connections, gpu.limits.call_bytes), (Some(8), 8, 1 << 30));
    let timing = (gpu.timing.spin, gpu.timing.reload, gpu.timing.deaths);
    assert_eq!(timing, (Duration::ZERO, Duration::from_secs(1200), 3));
    assert_eq!(config.backends.of("ours").host, HostConfig::default());
    assert_eq!((config.limits.sample_timeout, config.limits.steps), (Duration::from_secs(60), 1 << 30));
    assert_eq!(config.limits.ensemble, 1 << 30);
    // What is shown can be used as a file.
    let (again, _) = load(&sources(&settings.show(), &[])).unwrap();
    assert_eq!(again.backends.of("cpu").settings, cpu.settings);
    assert_eq!(again.backends.of("gpu").host, gpu);
}

#[test]
fn what_is_wrong_with_the_processes_of_backends_is_named() {
    let file = "\
model_dir = 'models'
[backends.cpu]
quarantine = '1m'
max_calls = 4
[backends.cuda]
max_calls = 0
call_wait = '-1s'
max_call_bytes = '0B'
inline_bytes = '2MiB'
kept_regions = 0
max_models = 0
max_instances = 1000000
start_timeout = '0s'
status_timeout = '0s'
request_timeout = '0s'
load_timeout = '0s'
restart_backoff = '0s'
quarantine_deaths = 0
quarantine_window = '0s'
quarantine = '0s'
cancel_grace = '0s'
end_grace = '0s'
";
    let all = problems(&sources(file, &[]));
    // Each by its own line.
    for line in 6..=22 {
        let place = format!("/etc/outrigger.toml:{line}: `backends.cuda.");
        assert!(all.iter().any(|problem| problem.starts_with(&place)), "{place}\nnot in {all:#?}");
    }
    assert_eq!(all.len(), 17, "{all:#?}");
    let file = "\
model_dir = 'models'
[backends]
cpu_threads = 4
[backends.cpu]
quarantine = '1m'
max_calls = 4
[backends.cuda]
threads = 3
max_calls = 2
spin = '11ms'
restart_backoff = '31s'
[backends.gpu]
restart_backoff_max = '99ms'
[backends.fpga]
threads = 4
max_calls = 4
[models.m]
path = 'm'
settings = ['affinity']
";
    let check = |file: &str, expected: &[&str]| {
        let problems = problems(&sources(file, &[]));
        for text in expected {
            assert!(problems.iter().any(|problem| problem.contains(text)), "{text}\nnot in {problems:#?}");
        }
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    };
    let cuda_and_gpu = [
        "toml:9: `backends.cuda.max_calls` is 2, fewer than the 3 threads of `backends.cuda.threads`",
        "toml:10: `backends.cuda.spin` is 11ms, 10ms is the most",
        "toml:11: `backends.cuda.restart_backoff` is 31s, more than `backends.cuda.restart_backoff_max`, 30s",
        "toml:13: `backends.gpu.restart_backoff` is 100ms, more than `backends.gpu.restart_backoff_max`, 99ms",
        "`models.m.settings` holds `affinity`, which is not KEY=VALUE",
    ];
    let inside = [
        "toml:5: `backends.cpu.quarantine` is about a process of its own, which `cpu` has not; set `backends.cpu.process = \"out\"`",
        "toml:6: `backends.cpu.max_calls` is about a process of its own",
    ];
    check(file, &[&inside[..], &cuda_and_gpu].concat());
    check(&file.replace("quarantine = '1m'\nmax_calls = 4", "process = 'out'\nmax_calls = 4"), &cuda_and_gpu);
    let few = "`backends.cpu.max_calls` is 3, fewer than the 4 threads of `backends.cpu_threads`";
    let file = file.replace("quarantine = '1m'\nmax_calls = 4", "process = 'out'\nmax_calls = 3");
    check(&file, &[&[few][..], &cuda_and_gpu].concat());
}

#[test]
fn what_is_wrong_with_backends_and_lists_is_named() {
    let file = "\
model_dir = 'models'
[backends]
cpu_thread = 3
[backends.path]
threads = 1
[backends.CUDA]
threads = 1
[backends.cdua]
threads = 1
[backends.cpu]
threds = 1
process = 'beside'
settings = ['cache']
[backends.gpu]
settings = ['a=1', 'a=2']
[placement]
devices = []
[models.a]
path = 'a'
devices = ['cuda:x', 'cpu']
[models.b]
path = 'b'
devices = ['cdua', 'fgpa']
instances = 65
";
    let problems = problems(&sources(file, &[]));
    let expected = [
        "/etc/outrigger.toml:3: unknown key `backends.cpu_thread`, did you mean `backends.cpu_threads`?",
        "/etc/outrigger.toml:4: `backends.path` is a table, expected a path",
        "/etc/outrigger.toml:6: `CUDA` is no backend's name",
        "/etc/outrigger.toml:11: unknown key `backends.cpu.threds`, did you mean `threads`?",
        "/etc/outrigger.toml:12: `backends.cpu.process` is \"beside\", expected one of in, out",
        "/etc/outrigger.toml:24: `models.b.instances` is `65`, expected a whole number from 1 to 64",
    ];
    for text in expected {
        assert!(problems.iter().any(|problem| problem.starts_with(text)), "{text}\nnot in {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");

    let file = file
        .replace("cpu_thread = 3\n[backends.path]\nthreads = 1\n[backends.CUDA]\nthreads = 1\n", "")
        .replace("threds = 1\nprocess = 'beside'\n", "")
        .replace("instances = 65\n", "");
    let problems = crate::config::tests::problems(&sources(&file, &[]));
    let expected = [
        "`backends.cdua.library` is missing: `cdua` is none of ours, did you mean `cuda`?",
        "`backends.cpu.settings` holds `cache`, which is not KEY=VALUE",
        "`backends.gpu.settings` sets `a` twice",
        "`placement.devices` names no device",
        "`models.a.devices` holds what is none: `cuda:x` is no device, such as cuda or cuda:1",
        "`models.b.devices` names `fgpa`, but there is no backend `fgpa`, did you mean `fpga`?",
    ];
    for text in expected {
        assert!(problems.iter().any(|problem| problem.contains(text)), "{text}\nnot in {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}
