// Performs accesses on a running guest from grpc-js and prints percentiles.
//
//   npm install && node access.js --api 127.0.0.1:41234 --process mem [--mode proto|reflection] [--number 500]
//                                 [--iodepth 16] [--pages 256]
//
// --mode proto reads this repository's .proto files; --mode reflection asks the server for them. Exits 1 if an access
// is refused or unanswered, 2 for bad input. Prints one JSON document.

import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import reflection from "grpc-js-reflection-client";

const HERE = dirname(fileURLToPath(import.meta.url));
const PROTOS = join(HERE, "..", "..", "..", "protos");
const SERVICE = "apf.v1.LoadService";
const DEADLINE_MS = 60_000;
const LOAD = { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true };

const badInput = (why) => {
  console.error(`access.js: ${why}`);
  process.exit(2);
};

const options = () => {
  const { values } = parseArgs({
    options: {
      api: { type: "string" },
      process: { type: "string" },
      mode: { type: "string", default: "proto" },
      number: { type: "string", default: "500" },
      iodepth: { type: "string", default: "16" },
      pages: { type: "string", default: "256" },
    },
  });
  for (const field of ["api", "process"]) {
    if (!values[field]) badInput(`--${field}: missing`);
  }
  if (!["proto", "reflection"].includes(values.mode)) badInput(`--mode = ${values.mode}: proto or reflection`);
  for (const field of ["number", "iodepth", "pages"]) {
    const value = Number(values[field]);
    if (!Number.isSafeInteger(value) || value < 1) badInput(`--${field} = ${values[field]}: a whole number from 1`);
    values[field] = value;
  }
  return values;
};

const serviceOf = (definition) => grpc.loadPackageDefinition(definition).apf.v1.LoadService;

const byProto = () => serviceOf(protoLoader.loadSync("apf/v1/load.proto", { ...LOAD, includeDirs: [PROTOS] }));

const byReflection = async (api) => {
  const client = new reflection.GrpcReflection(api, grpc.credentials.createInsecure());
  const services = await client.listServices();
  if (!services.includes(SERVICE)) throw new Error(`reflection: no ${SERVICE} among ${services.join(", ")}`);
  const descriptor = await client.getDescriptorBySymbol(SERVICE);
  return serviceOf(descriptor.getPackageDefinition(LOAD));
};

const percentiles = (values) => {
  const sorted = Float64Array.from(values).sort();
  const at = (percent) => sorted[Math.max(0, Math.ceil((sorted.length * percent) / 100) - 1)];
  return Object.fromEntries([50, 90, 99, 99.9].map((percent) => [`p${percent}`, at(percent)]));
};

// A closed loop: so many unary calls in flight, the next when one returns.
const perform = async (client, { process: name, number, iodepth, pages }) => {
  const guestNs = [];
  const wallUs = [];
  const met = {};
  let next = 0;
  const one = (page) =>
    new Promise((resolve, reject) => {
      const began = process.hrtime.bigint();
      const request = { process_name: name, page: String(page), kind: page % 4 ? "ACCESS_READ" : "ACCESS_WRITE" };
      client.Access(request, { deadline: Date.now() + DEADLINE_MS }, (error, answer) => {
        if (error) return reject(error);
        wallUs.push(Number(process.hrtime.bigint() - began) / 1000);
        guestNs.push(Number(answer.latency_ns));
        met[answer.met] = (met[answer.met] ?? 0) + 1;
        return resolve();
      });
    });
  const worker = async () => {
    while (next < number) {
      const index = next++;
      await one((index * 7919) % pages);
    }
  };
  const began = process.hrtime.bigint();
  await Promise.all(Array.from({ length: iodepth }, worker));
  const seconds = Number(process.hrtime.bigint() - began) / 1e9;
  return {
    performed: wallUs.length,
    per_wall_s: Math.round(wallUs.length / seconds),
    wall_us: percentiles(wallUs),
    guest_ns: percentiles(guestNs),
    met,
  };
};

const main = async () => {
  const chosen = options();
  const Service = chosen.mode === "proto" ? byProto() : await byReflection(chosen.api);
  const client = new Service(chosen.api, grpc.credentials.createInsecure());
  try {
    const found = await perform(client, chosen);
    console.log(JSON.stringify({ mode: chosen.mode, ...found }, null, 2));
  } finally {
    client.close();
  }
};

main().then(
  () => process.exit(0), // the reflection client keeps its connection open
  (error) => {
    console.error(`access.js: ${error.message}`);
    process.exit(1);
  },
);
