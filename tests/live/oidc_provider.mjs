// An OpenID provider for tests: node oidc_provider.mjs PORT KEYS_JSON. Programs have client credentials, people sign in by
// name with a code and PKCE; access tokens are JWTs. `/asked` says how often each path was asked for. Keys
// take their time, so that whoever needs them at once does so while they are on their way.
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
const web = {
  client_id: 'web',
  application_type: 'native',
  token_endpoint_auth_method: 'none',
  grant_types: ['authorization_code'],
  redirect_uris: ['http://127.0.0.1/back'],
  response_types: ['code'],
};
const people = {
  eva: { tenant: 'acme', roles: ['user'] },
  boss: { tenant: 'acme', roles: ['tenant_admin', 'user'] },
  guest: { roles: ['user'] },
};
const claims = {
  'acme-program': { tenant: 'acme', roles: ['service'] },
  'rival-program': { tenant: 'rival', roles: ['service'] },
  'homeless-program': {},
};

const provider = new Provider(issuer, {
  jwks: { keys },
  clients: [...Object.keys(claims).map(client), web],
  findAccount: (_, accountId) => people[accountId] && { accountId, claims: () => ({ sub: accountId }) },
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: true },
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
  extraTokenClaims: (_, token) => (token.accountId ? people[token.accountId] : claims[token.clientId]),
});
const asked = {};
provider.use(async (ctx, next) => {
  if (ctx.path === '/asked') {
    ctx.body = asked;
    return;
  }
  asked[ctx.path] = (asked[ctx.path] ?? 0) + 1;
  if (ctx.path === '/jwks') await new Promise((over) => setTimeout(over, 500));
  await next();
});
provider.listen(port, '127.0.0.1', () => console.log('ready'));
