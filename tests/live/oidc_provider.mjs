// An OpenID provider for tests: node oidc_provider.mjs PORT KEYS_JSON. Client credentials only; access tokens are JWTs.
import { Provider } from 'oidc-provider';

const [port, keys] = [Number(process.argv[2]), JSON.parse(process.argv[3])];
const issuer = `http://127.0.0.1:${port}`;
const client = (client_id) => ({
  client_id,
  client_secret: 'a secret for tests only',
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
});
const claims = {
  'acme-program': { tenant: 'acme', roles: ['service'] },
  'rival-program': { tenant: 'rival', roles: ['service'] },
  'homeless-program': {},
};

const provider = new Provider(issuer, {
  jwks: { keys },
  clients: Object.keys(claims).map(client),
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, audience) => ({
        scope: 'ask',
        audience,
        accessTokenFormat: 'jwt',
        accessTokenTTL: 300,
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
  extraTokenClaims: (_, token) => claims[token.clientId],
});
provider.listen(port, '127.0.0.1', () => console.log('ready'));
