//! A real issuer: its tokens are taken, its keys change, and it goes away.

use outrigger_testkit::oidc::Oidc;

use super::{AUDIENCE, BOBS_KEY, launch, status, table, token, until, until_known, until_metric};
use crate::support::{client, metric};

#[tokio::test]
async fn tokens_of_each_algorithm_say_who_calls_and_rules_hold_for_them() {
    let Some(issuer) = Oidc::found("one") else { return };
    // It is ready once it has the keys.
    let replica = launch("token", &table(&issuer)).start();
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        let bob = token(&issuer, "bob", algorithm, AUDIENCE, 600).await;
        for _ in 0..3 {
            assert_eq!(status(&replica, &bob).await, 200, "{algorithm}: {}", replica.log_text());
        }
        let elsewhere = token(&issuer, "bob", algorithm, "somebody-else", 600).await;
        assert_eq!(status(&replica, &elsewhere).await, 401);
        // Known to the issuer and not to us; and known to us, with no right to score.
        let stranger = token(&issuer, "stranger", algorithm, AUDIENCE, 600).await;
        let eve = token(&issuer, "eve", algorithm, AUDIENCE, 600).await;
        assert_eq!((status(&replica, &stranger).await, status(&replica, &eve).await), (403, 403));
    }
    assert_eq!(status(&replica, BOBS_KEY).await, 401, "keys are not taken beside tokens");
    let granted = "outrigger_caller_requests_total{answer=\"granted\",caller=\"bob\"}";
    assert_eq!(metric(&replica, granted).await, Some(9.0));
    let reason = async |reason: &str| {
        metric(&replica, &format!("outrigger_auth_refusals_total{{reason=\"{reason}\"}}")).await
    };
    assert_eq!((reason("token_audience").await, reason("token_principal").await), (Some(3.0), Some(3.0)));
    // No key file was made where no key is good for anything.
    assert!(!replica.directory().join("state/keys.toml").exists());
}

#[tokio::test]
async fn both_are_taken_where_both_are_asked_for_and_claims_say_who_is_whom() {
    let Some(issuer) = Oidc::found("one") else { return };
    let more =
        "claim = 'client_id'\ncallers = ['stranger=bob']\nscopes = ['score']\nalgorithms = ['ES256']\n";
    let replica = launch("both", &format!("{}{more}", table(&issuer))).start();
    until_known(&replica, "real", 3.0).await;
    assert_eq!(status(&replica, BOBS_KEY).await, 200);
    let stranger = token(&issuer, "stranger", "ES256", AUDIENCE, 600).await;
    assert_eq!(status(&replica, &stranger).await, 200);
    let bob = token(&issuer, "bob", "ES256", AUDIENCE, 600).await;
    assert_eq!(status(&replica, &bob).await, 403, "others than those in the list are nobody");
    let other = token(&issuer, "stranger", "RS256", AUDIENCE, 600).await;
    assert_eq!(status(&replica, &other).await, 401, "an algorithm that the issuer may not use");
}

#[tokio::test]
async fn keys_change_and_the_old_ones_are_refused() {
    let Some(mut issuer) = Oidc::found("one") else { return };
    // Only a token that names a key which is not known has it asked again.
    let replica = launch("token", &table(&issuer)).args(["--tokens-refresh", "1h"]).start();
    until_known(&replica, "real", 3.0).await;
    let old = token(&issuer, "bob", "RS256", AUDIENCE, 600).await;
    assert_eq!(status(&replica, &old).await, 200);
    issuer.restart("two");
    assert_eq!(status(&replica, &old).await, 200, "nobody has said yet that it does not hold");
    let new = token(&issuer, "bob", "RS256", AUDIENCE, 600).await;
    until(&replica, &new, 200).await;
    assert_eq!(status(&replica, &old).await, 401, "though it was remembered");
}

#[tokio::test]
async fn scoring_does_not_depend_on_the_issuer_being_up_not_even_a_new_start() {
    let Some(mut issuer) = Oidc::found("one") else { return };
    let mut replica = launch("token", &table(&issuer)).args(["--tokens-refresh", "50ms"]).start();
    until_known(&replica, "real", 3.0).await;
    let bob = token(&issuer, "bob", "ES256", AUDIENCE, 3600).await;
    let unseen = token(&issuer, "bob", "RS256", AUDIENCE, 3600).await;
    issuer.stop();
    replica.wait_for_text("cannot be asked for its keys");
    let failed = "outrigger_token_key_fetches_total{issuer=\"real\",outcome=\"failed\"}";
    until_metric(&replica, failed, 3.0).await;
    assert_eq!(metric(&replica, "outrigger_degraded{part=\"issuer\"}").await, Some(1.0));
    for token in [&bob, &unseen] {
        assert_eq!(status(&replica, token).await, 200);
    }
    let kept = replica.stop_keeping();
    let launch = launch("token", &table(&issuer)).env("OUTRIGGER_STATE_DIR", kept.path().join("state"));
    let mut replica = launch.start();
    replica.wait_for_text("cannot be asked for its keys");
    for token in [&bob, &unseen] {
        assert_eq!(status(&replica, token).await, 200, "{}", replica.log_text());
    }
    // It comes back with other keys.
    issuer.restart("two");
    let new = token(&issuer, "bob", "EdDSA", AUDIENCE, 600).await;
    until(&replica, &new, 200).await;
    assert_eq!(status(&replica, &bob).await, 401);
    assert_eq!(metric(&replica, "outrigger_degraded{part=\"issuer\"}").await, Some(0.0));
}

#[tokio::test]
async fn names_of_keys_that_are_not_there_have_nobody_asked_again_and_again() {
    let Some(mut issuer) = Oidc::found("one") else { return };
    let replica =
        launch("token", &table(&issuer)).args(["--tokens-retry", "1h", "--tokens-refresh", "1h"]).start();
    until_known(&replica, "real", 3.0).await;
    issuer.restart("two");
    let unknown = token(&issuer, "bob", "ES256", AUDIENCE, 600).await;
    for _ in 0..50 {
        assert_eq!(status(&replica, &unknown).await, 401);
    }
    let good = "outrigger_token_key_fetches_total{issuer=\"real\",outcome=\"good\"}";
    assert_eq!(metric(&replica, good).await, Some(1.0));
    let refused = "outrigger_auth_refusals_total{reason=\"token_key\"}";
    assert_eq!(metric(&replica, refused).await, Some(50.0));

    // Where that time goes by it is asked again, once for as long as it is, however many come.
    let often = launch("token", &table(&issuer)).args(["--tokens-retry", "200ms", "--tokens-refresh", "1h"]);
    let often = often.start();
    issuer.restart("one");
    let unknown = token(&issuer, "bob", "ES256", AUDIENCE, 600).await;
    issuer.restart("two");
    until_known(&often, "real", 3.0).await;
    let (begun, before) = (std::time::Instant::now(), metric(&often, good).await.unwrap());
    let mut asked = before;
    while asked < before + 2.0 {
        assert_eq!(status(&often, &unknown).await, 401, "{}", often.log_text());
        asked = metric(&often, good).await.unwrap();
        assert!(begun.elapsed() < crate::support::PATIENCE);
    }
    let most = begun.elapsed().as_secs_f64() / 0.2 + 2.0;
    assert!(asked - before <= most, "{before} {asked} {most}");
}

#[tokio::test]
async fn what_an_issuer_answers_is_bounded_and_has_to_be_its_own() {
    let Some(issuer) = Oidc::found("one") else { return };
    // One that calls itself otherwise than it is configured.
    let other = format!(
        "[tokens.issuers.other]\nissuer = '{}/x'\naudiences = ['a']\n[tokens.issuers.small]\nissuer = '{}'\njwks_uri = '{}/jwks'\naudiences = ['a']\n",
        issuer.url(),
        issuer.url(),
        issuer.url()
    );
    let mut replica =
        launch("token", &other).args(["--tokens-document", "1KiB", "--tokens-keys", "2"]).start();
    replica.wait_for_text("it answers 404");
    let failed = "outrigger_token_key_fetches_total{issuer=\"small\",outcome=\"failed\"}";
    until_metric(&replica, failed, 1.0).await;
    let log = replica.log_text();
    assert!(log.contains("(tokens.document)") || log.contains("(tokens.keys)"), "{log}");
    assert_eq!(metric(&replica, "outrigger_token_keys{issuer=\"small\"}").await, Some(0.0));
    let bob = token(&issuer, "bob", "ES256", "a", 600).await;
    assert_eq!(status(&replica, &bob).await, 401);
    let refused = "outrigger_auth_refusals_total{reason=\"token_no_keys\"}";
    assert_eq!(metric(&replica, refused).await, Some(1.0));
    let live = client().get(format!("{}/live", replica.observe)).send().await.unwrap();
    assert_eq!(live.status(), 200);
}
