// fastify on postgres.js: EdDSA tokens (with the verifier's own cache where BENCH_TOKEN_CACHE is set), schemas for what comes in and what goes out.
import { randomUUID } from 'node:crypto'
import { hash } from '@node-rs/argon2'
import { createVerifier } from 'fast-jwt'
import Fastify from 'fastify'
import postgres from 'postgres'

const sql = postgres(process.env.BENCH_DATABASE_URL, { max: 10 })
const cache = process.env.BENCH_TOKEN_CACHE ? 10_000 : false
const verify = createVerifier({ key: process.env.BENCH_PUBLIC_KEY, algorithms: ['EdDSA'], cache })
const app = Fastify()

const text = { type: 'string' }
const person = {
  type: 'object',
  properties: {
    id: text, username: text, email: text, full_name: { type: ['string', 'null'] }, role: text,
    version: { type: 'integer' }, created_at: text, updated_at: text
  }
}
const id = { type: 'string', format: 'uuid' }

app.decorateRequest('claims', null)
app.addHook('onRequest', async (request, reply) => {
  try {
    request.claims = verify((request.headers.authorization ?? '').replace('Bearer ', ''))
  } catch {
    return reply.code(401).send({ title: 'Unauthorized' })
  }
})

app.get('/users/:id', { schema: { params: { type: 'object', properties: { id } }, response: { 200: person } } },
  async (request, reply) => {
    const { claims, params } = request
    if (claims.role !== 'admin' && claims.sub !== params.id) return reply.code(404).send({ title: 'Not Found' })
    const [found] = await sql`
      SELECT id, username, email, full_name, role, version, created_at, updated_at FROM people WHERE id = ${params.id}`
    if (!found) return reply.code(404).send({ title: 'Not Found' })
    return found
  })

const query = { type: 'object', properties: { limit: { type: 'integer', minimum: 1, maximum: 100, default: 20 }, after: id } }
const people = { type: 'object', properties: { items: { type: 'array', items: person }, next: { type: ['string', 'null'] } } }
app.get('/users', { schema: { querystring: query, response: { 200: people } } }, async (request, reply) => {
  if (request.claims.role !== 'admin') return reply.code(403).send({ title: 'Forbidden' })
  const { limit, after } = request.query
  const items = await sql`
    SELECT id, username, email, full_name, role, version, created_at, updated_at FROM people
    ${after ? sql`WHERE id > ${after}` : sql``} ORDER BY id LIMIT ${limit}`
  return { items, next: items.length === limit ? items[items.length - 1].id : null }
})

const draft = {
  type: 'object',
  required: ['username', 'email', 'password'],
  additionalProperties: false,
  properties: {
    username: { type: 'string', pattern: '^[A-Za-z0-9._-]{3,32}$' },
    email: { type: 'string', format: 'email', maxLength: 254 },
    password: { type: 'string', minLength: 8, maxLength: 128 },
    full_name: { type: ['string', 'null'], maxLength: 128 }
  }
}
app.post('/users', { schema: { body: draft, response: { 201: person } } }, async (request, reply) => {
  const { username, email, password, full_name: fullName = null } = request.body
  const passwordHash = await hash(password, { memoryCost: 8, timeCost: 1, parallelism: 1 })
  const now = new Date()
  try {
    const [made] = await sql`
      INSERT INTO people (id, username, email, full_name, role, version, password_hash, created_at, updated_at)
      VALUES (${randomUUID()}, ${username}, ${email}, ${fullName}, 'user', 1, ${passwordHash}, ${now}, ${now})
      RETURNING id, username, email, full_name, role, version, created_at, updated_at`
    return reply.code(201).send(made)
  } catch (error) {
    if (error.code === '23505') return reply.code(409).send({ title: 'Conflict' })
    throw error
  }
})

await app.listen({ host: '127.0.0.1', port: Number(process.env.BENCH_PORT) })
