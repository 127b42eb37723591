// An issuer of tokens for tests: oidc-provider as it is, with keys that are made at its start and named as its arguments say.
// Arguments: the folder with its packages, the port (0: a free one), and the beginning of its keys' names.
// It prints where it listens, and ends when its standard input does.
import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, port, kid] = process.argv.slice(2);
const from = createRequire(pathToFileURL(`${folder}/package.json`));
const { Provider } = await import(pathToFileURL(from.resolve("oidc-provider")));

process.stdin.on("close", () => process.exit()).resume();

const kinds = { RS256: ["rsa", { modulusLength: 2048 }], ES256: ["ec", { namedCurve: "P-256" }], EdDSA: ["ed25519", {}] };
const keys = Object.entries(kinds).map(([alg, [kind, options]]) => {
  const { privateKey } = generateKeyPairSync(kind, options);
  return { ...privateKey.export({ format: "jwk" }), alg, use: "sig", kid: `${kid}-${alg}` };
});

// `https://outrigger.test/ALGORITHM/AUDIENCE/SECONDS`: how a token is signed, for whom it is, and for how long.
function resource(indicator) {
  const [alg, audience, seconds] = new URL(indicator).pathname.slice(1).split("/");
  return {
    scope: "score infer",
    audience,
    accessTokenTTL: Number(seconds),
    accessTokenFormat: "jwt",
    jwt: { sign: { alg } },
  };
}

const client = (client_id) => ({
  client_id,
  client_secret: `the-secret-of-${client_id}`,
  grant_types: ["client_credentials"],
  redirect_uris: [],
  response_types: [],
});

const server = createServer();
server.listen(Number(port), "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: ["bob", "eve", "stranger"].map(client),
    jwks: { keys },
    scopes: ["score", "infer"],
    enabledJWA: { idTokenSigningAlgValues: ["RS256", "ES256", "EdDSA"] },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, indicator) => resource(indicator),
      },
    },
  });
  server.on("request", provider.callback());
  console.log(issuer);
});
