//! Plans, by hand and at random.

use proptest::prelude::*;

use super::*;

fn backend(name: &str, budgets: &[Option<u64>]) -> BackendState {
    BackendState {
        name: name.into(),
        formats: vec!["onnx".into()],
        devices: budgets
            .iter()
            .map(|budget| DeviceState { budget: *budget, ..DeviceState::default() })
            .collect(),
        absent: budgets.is_empty().then(|| "no driver".into()),
        beside: None,
    }
}

/// A model that takes so much wherever it goes.
fn model(name: &str, devices: &str, instances: usize, bytes: u64, backends: &[BackendState]) -> Wanted {
    let mut wanted = Wanted {
        name: name.into(),
        devices: devices.split(' ').map(|device| device.parse().unwrap()).collect(),
        fallback: true,
        instances,
        format: Some("onnx".into()),
        ..Wanted::default()
    };
    for backend in backends {
        for index in 0..backend.devices.len() {
            wanted.estimates.insert(DeviceId { backend: backend.name.clone(), index }, Ok(bytes));
        }
    }
    wanted
}

/// `model.instance device` or `model.instance -`, and why not elsewhere.
fn shown(plan: &Plan) -> Vec<String> {
    let tried = |tried: &[Tried]| tried.iter().map(|tried| format!(" [{tried}]")).collect::<String>();
    let evict = |evict: &[Eviction]| {
        evict.iter().map(|gone| format!(" -{}.{}", gone.model, gone.instance)).collect::<String>()
    };
    let placed = plan.placed.iter().map(|placed| {
        let from = placed.fallback_from.iter().map(|from| format!(" from {from}")).collect::<String>();
        let Placed { model, instance, device, .. } = placed;
        format!("{model}.{instance} {device}{from}{}{}", tried(&placed.tried), evict(&placed.evict))
    });
    let unplaced = plan.unplaced.iter().map(|unplaced| {
        let Unplaced { model, instance, .. } = unplaced;
        format!("{model}.{instance} -{}{}", tried(&unplaced.tried), evict(&unplaced.evict))
    });
    placed.chain(unplaced).collect()
}

#[test]
fn each_copy_goes_to_the_first_entry_with_room_and_says_why() {
    let backends = [backend("cuda", &[Some(10), Some(20)]), backend("cpu", &[None]), backend("fpga", &[])];
    let plan = |models: &[Wanted]| shown(&super::plan(models, &backends));
    assert_eq!(plan(&[model("a", "cpu", 1, 5, &backends)]), ["a.0 cpu:0"]);
    // Spread: first the one with more room, then the other, then where room is.
    let spread = plan(&[model("a", "cuda cpu", 3, 10, &backends)]);
    assert_eq!(spread, ["a.0 cuda:1", "a.1 cuda:0", "a.2 cuda:1"]);
    // Copies on one device share their weights.
    let shared = plan(&[model("a", "cuda:0", 3, 6, &backends)]);
    assert_eq!(shared, ["a.0 cuda:0", "a.1 cuda:0", "a.2 cuda:0"]);
    let absent =
        "a.0 cpu:0 from fpga [fpga: no such device: no driver] [cuda:7: no such device: its backend has 2]";
    assert_eq!(plan(&[model("a", "fpga cuda:7 cpu", 1, 5, &backends)]), [absent]);
    let full = plan(&[model("a", "cuda:0", 1, 8, &backends), model("b", "cuda:0 cpu", 1, 3, &backends)]);
    let why = "[cuda:0: has no room: 3 bytes more than the 8 taken are over its 10]";
    assert_eq!(full, ["a.0 cuda:0".to_owned(), format!("b.0 cpu:0 from cuda:0 {why} -a.0")]);
    // Nothing that leaves would help.
    let whole = plan(&[model("a", "cuda:0", 1, 8, &backends), model("b", "cuda:0 cpu", 1, 30, &backends)]);
    assert!(whole[1].ends_with("over its 10]"), "{whole:?}");
}

#[test]
fn what_is_forbidden_unhealthy_or_of_another_format_is_said() {
    let mut backends = [backend("cuda", &[Some(10)]), backend("cpu", &[None])];
    backends[0].devices[0].lost = Some("fell off the bus".into());
    let strict = Wanted { fallback: false, ..model("a", "cuda cpu", 1, 1, &backends) };
    let expected = "a.0 - [cuda:0: is lost: fell off the bus] [cpu: not allowed: fallback = false]";
    assert_eq!(shown(&plan(&[strict], &backends)), [expected]);
    let text = Wanted { format: Some("text".into()), ..model("a", "cpu", 1, 1, &backends) };
    assert_eq!(shown(&plan(&[text], &backends)), ["a.0 - [cpu: does not take `text`, only onnx]"]);
}

#[test]
fn an_entry_means_the_backends_beside_its_own_as_well() {
    let mut backends = [
        backend("cuda", &[]),
        backend("cuda_torch", &[Some(20)]),
        backend("cpu", &[Some(10)]),
        backend("cpu_torch", &[Some(20)]),
    ];
    for (at, main) in [(1, "cuda"), (3, "cpu")] {
        backends[at].formats = vec!["torchscript".into()];
        backends[at].beside = Some(main.into());
    }
    let plan = |models: &[Wanted]| shown(&super::plan(models, &backends));
    let of = |format: &str, devices: &str, bytes: u64| Wanted {
        format: (!format.is_empty()).then(|| format.into()),
        ..model(if format.is_empty() { "any" } else { format }, devices, 1, bytes, &backends)
    };
    assert_eq!(plan(&[of("torchscript", "cpu:0", 5)]), ["torchscript.0 cpu_torch:0"]);
    assert_eq!(
        plan(&[of("onnx", "cuda cpu", 5)]),
        ["onnx.0 cpu:0 from cuda [cuda: no such device: no driver]"]
    );
    assert_eq!(
        plan(&[of("torchscript", "cuda cpu", 5)]),
        ["torchscript.0 cuda_torch:0"],
        "not by cuda's reason"
    );
    assert_eq!(plan(&[of("", "cpu", 5)]), ["any.0 cpu:0"], "whose format nobody knows");
    assert_eq!(
        plan(&[of("onnx", "cpu_torch", 5)]),
        ["onnx.0 - [cpu_torch: does not take `onnx`, only torchscript]"]
    );
    assert_eq!(
        plan(&[of("text", "cpu", 5)]),
        [
            "text.0 - [cpu: does not take `text`, only onnx] [cpu_torch: does not take `text`, only torchscript]"
        ]
    );
    // What one holds the other cannot have.
    let both = plan(&[of("onnx", "cpu", 6), of("torchscript", "cpu", 5)]);
    assert_eq!(
        both[1],
        "torchscript.0 - [cpu_torch:0: has no room: 5 bytes more than the 6 taken are over its 10] -onnx.0"
    );
}

#[test]
fn what_did_not_load_goes_on_along_its_list_and_what_is_loaded_stays() {
    let backends = [backend("cuda", &[Some(10), Some(8)]), backend("cpu", &[None])];
    let failed = |wanted: Wanted, index| {
        let device = DeviceId { backend: "cuda".into(), index };
        Wanted { failed: BTreeMap::from([(device, "out of memory".into())]), ..wanted }
    };
    let plan = |models: &[Wanted]| shown(&super::plan(models, &backends));
    let a = || model("a", "cuda cpu", 1, 5, &backends);
    let why = |index| format!("[cuda:{index}: did not load it: out of memory]");
    // To the next device of the same entry first, which is no fallback.
    assert_eq!(plan(&[failed(a(), 0)]), [format!("a.0 cuda:1 {}", why(0))]);
    let both =
        Wanted { failed: failed(a(), 0).failed.into_iter().chain(failed(a(), 1).failed).collect(), ..a() };
    assert_eq!(plan(&[both]), [format!("a.0 cpu:0 from cuda {} {}", why(0), why(1))]);
    let strict = failed(Wanted { fallback: false, ..model("a", "cuda:1 cpu", 1, 5, &backends) }, 1);
    assert_eq!(plan(&[strict]), [format!("a.0 - {} [cpu: not allowed: fallback = false]", why(1))]);

    // Two copies are loaded, and hold more than was thought: the third shares with the one that is left, the next model does not fit.
    let first = super::plan(&[model("a", "cuda cpu", 3, 5, &backends)], &backends);
    let mut loaded = first.placed[..2].to_vec();
    assert_eq!(loaded.iter().map(|placed| placed.device.index).collect::<Vec<_>>(), [0, 1]);
    loaded[0].bytes = 7;
    let a = || Wanted { loaded: loaded.clone(), ..model("a", "cuda cpu", 3, 5, &backends) };
    let b = model("b", "cuda:0 cpu", 1, 4, &backends);
    let no_room = "[cuda:0: has no room: 4 bytes more than the 7 taken are over its 10]";
    assert_eq!(
        plan(&[failed(a(), 1), b.clone()]),
        [
            "a.0 cuda:0".into(),
            "a.1 cuda:1".into(),
            format!("a.2 cuda:0 {}", why(1)),
            format!("b.0 cpu:0 from cuda:0 {no_room} -a.2 -a.0")
        ]
    );
    // Also where it is further down than what is placed anew.
    let anew = plan(&[b, a()]);
    assert_eq!(anew[0], format!("b.0 cpu:0 from cuda:0 {no_room}"));
    assert_eq!(anew[1..3], ["a.0 cuda:0", "a.1 cuda:1"]);
}

prop_compose! {
    fn backends()(budgets in prop::collection::vec(prop::collection::vec((prop::option::of(0u64..100), 0u64..30, any::<bool>()), 0..4), 1..4)) -> Vec<BackendState> {
        let names = ["cpu", "cuda", "gpu"];
        budgets.iter().zip(names).map(|(devices, name)| BackendState {
            name: name.into(),
            formats: vec!["onnx".into()],
            absent: None,
            beside: None,
            devices: devices.iter().map(|(budget, held, lost)| DeviceState {
                budget: *budget,
                held: *held,
                lost: lost.then(|| "lost".into()),
            }).collect(),
        }).collect()
    }
}

prop_compose! {
    fn models(backends: Vec<BackendState>)(
        models in prop::collection::vec((prop::sample::subsequence(vec!["cuda", "cpu:0", "gpu:1", "cpu", "gpu"], 1..5), 1usize..4, 0u64..60, any::<bool>()), 0..8),
    ) -> (Vec<BackendState>, Vec<Wanted>) {
        let wanted = models.iter().enumerate().map(|(number, (devices, instances, bytes, fallback))| Wanted {
            fallback: *fallback,
            ..model(&format!("m{number}"), &devices.join(" "), *instances, *bytes, &backends)
        }).collect();
        (backends.clone(), wanted)
    }
}

proptest! {
    #[test]
    fn plans_keep_to_budgets_and_lists((backends, models) in backends().prop_flat_map(models)) {
        let plan = super::plan(&models, &backends);
        prop_assert_eq!(shown(&plan), shown(&super::plan(&models, &backends)), "the same again");
        let copies: usize = models.iter().map(|model| model.instances).sum();
        prop_assert_eq!(plan.placed.len() + plan.unplaced.len(), copies);
        for used in &plan.devices {
            let on = plan.placed.iter().filter(|placed| placed.device == used.device);
            prop_assert_eq!(used.planned, on.map(|placed| placed.bytes).sum::<u64>());
            // What was over its budget before gets nothing that has a size.
            prop_assert!(used.planned == 0 || used.budget.is_none_or(|budget| used.held + used.planned <= budget));
        }
        for placed in &plan.placed {
            let model = models.iter().find(|model| model.name == placed.model).unwrap();
            let rank = model.devices.iter().position(|wish| {
                wish.backend == placed.device.backend && wish.index.is_none_or(|index| index == placed.device.index)
            });
            prop_assert!(rank.is_some(), "on a device that its list names");
            prop_assert!(model.fallback || placed.fallback_from.is_none());
            let backend = backends.iter().find(|backend| backend.name == placed.device.backend).unwrap();
            prop_assert!(backend.devices[placed.device.index].lost.is_none());
        }
        for unplaced in &plan.unplaced {
            let model = models.iter().find(|model| model.name == unplaced.model).unwrap();
            for wish in &model.devices {
                let told = unplaced.tried.iter().any(|tried| tried.device.split(':').next() == Some(&*wish.backend));
                prop_assert!(told, "{} is named", wish);
            }
        }
    }
    #[test]
    fn what_is_planned_anew_moves_nothing_and_goes_nowhere_where_it_failed(
        (backends, models) in backends().prop_flat_map(models),
        count in any::<prop::sample::Index>(),
        measured in prop::collection::vec(0u64..60, 24),
        elsewhere in prop::collection::btree_set((0usize..8, 0usize..3, 0usize..4), 0..6),
    ) {
        let first = super::plan(&models, &backends);
        // As it is when one of the copies does not load where it was planned: those before it are loaded.
        let count = if first.placed.is_empty() { 0 } else { count.index(first.placed.len()) };
        let (before, after) = first.placed.split_at(count);
        let mut models = models;
        for (placed, bytes) in before.iter().zip(measured.iter().cycle()) {
            let model = models.iter_mut().find(|model| model.name == placed.model).unwrap();
            model.loaded.push(Placed { bytes: *bytes, ..placed.clone() });
        }
        let failing = after.first().map(|placed| (placed.model.clone(), placed.device.clone()));
        let more = elsewhere.into_iter().filter_map(|(model, backend, index)| {
            let backend = backends.get(backend)?.name.clone();
            Some((models.get(model)?.name.clone(), DeviceId { backend, index }))
        });
        for (name, device) in failing.into_iter().chain(more.collect::<Vec<_>>()) {
            models.iter_mut().find(|model| model.name == name).unwrap().failed.insert(device, "broke".into());
        }
        let plan = super::plan(&models, &backends);
        prop_assert_eq!(plan.placed.len() + plan.unplaced.len(), models.iter().map(|model| model.instances).sum::<usize>());
        for model in &models {
            let placed: Vec<_> = plan.placed.iter().filter(|placed| placed.model == model.name).collect();
            let (stay, anew) = placed.split_at(model.loaded.len());
            prop_assert!(stay.iter().copied().eq(&model.loaded), "what is loaded stays as it is");
            for placed in anew {
                prop_assert!(!model.failed.contains_key(&placed.device), "{} at {}", placed.model, placed.device);
                prop_assert!(model.fallback || placed.fallback_from.is_none());
            }
        }
        for used in &plan.devices {
            let on = || plan.placed.iter().filter(|placed| placed.device == used.device);
            prop_assert_eq!(used.planned, on().map(|placed| placed.bytes).sum::<u64>(), "as measured");
            let adds = on().any(|placed| {
                let model = models.iter().find(|model| model.name == placed.model).unwrap();
                !model.loaded.contains(placed) && placed.bytes > 0
            });
            prop_assert!(!adds || used.budget.is_none_or(|budget| used.held + used.planned <= budget));
        }
        // Of what finds no place, every device that it failed on and might have gone to is named.
        for unplaced in &plan.unplaced {
            let model = models.iter().find(|model| model.name == unplaced.model).unwrap();
            let wishes = model.devices.iter().take(if model.fallback { model.devices.len() } else { 1 });
            for wish in wishes {
                let Some(backend) = backends.iter().find(|backend| backend.name == wish.backend) else { continue };
                for (device, state) in backend.devices.iter().enumerate() {
                    let id = DeviceId { backend: wish.backend.clone(), index: device };
                    let told = unplaced.tried.iter().any(|tried| tried.device == id.to_string() && matches!(tried.reason, Reason::Failed { .. }));
                    let is_asked = wish.index.is_none_or(|index| index == device) && state.lost.is_none();
                    prop_assert!(told || !is_asked || !model.failed.contains_key(&id), "{}", id);
                }
            }
        }
    }
}
