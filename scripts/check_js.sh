#!/usr/bin/env bash
# Check web/: types against the host frontend's own (tsc), then the unit tests with node's runner.
#   scripts/check_js.sh [python]      (default: .venv/bin/python; its environment brings node and npm)
#
# web/ has no build step; TypeScript and the type packages are fetched into .work/js, which is git-ignored. The modules
# import ../../scripts/app.js, a path that exists only on the server: .work/js/root imitates it with links.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin="$(cd "$(dirname "${1:-.venv/bin/python}")" && pwd)"
export PATH="$bin:$PATH"
wanted="typescript@5.9.3 @comfyorg/comfyui-frontend-types@1.32.4"

mkdir -p .work/js/root/scripts .work/js/root/extensions
if [[ "$(cat .work/js/installed 2>/dev/null)" != "$wanted" ]]; then
    # shellcheck disable=SC2086 - two packages
    (cd .work/js && npm install --no-save --no-audit --no-fund --silent $wanted)
    echo "$wanted" >.work/js/installed
fi
ln -sfn ../../../../web .work/js/root/extensions/kiln
cat >.work/js/root/scripts/app.d.ts <<'END'
import type { ComfyApp } from "@comfyorg/comfyui-frontend-types";
export const app: ComfyApp;
declare const Class: any; // its static members are not in the types
export { Class as ComfyApp };
END
cat >.work/js/root/scripts/api.d.ts <<'END'
import type { ComfyApi } from "@comfyorg/comfyui-frontend-types";
export const api: ComfyApi;
END
cat >.work/js/tsconfig.json <<'END'
{
  "compilerOptions": {
    "noEmit": true, "allowJs": true, "checkJs": true, "strict": true, "target": "es2023",
    "lib": ["es2023", "dom", "dom.iterable"], "module": "esnext", "moduleResolution": "bundler",
    "skipLibCheck": true, "types": [], "preserveSymlinks": true
  },
  "include": ["root/extensions/kiln"]
}
END
.work/js/node_modules/.bin/tsc -p .work/js/tsconfig.json
node --test tests/web/*.test.mjs
