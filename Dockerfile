# yarn-convert on a CPU: converts, and validates with transformers and llama.cpp.
#
#   docker build -t yarn-convert --build-arg TORCH_INDEX=URL .    # the index of PyTorch's builds for CPUs; without it pip's, with gigabytes of CUDA
#   docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" yarn-convert ./my-model --scale 4 --out gguf
#
# tini is process 1: it hands Ctrl-C and `docker stop` on, on which yarn-convert cleans up, and takes leave of workers that have ended.
FROM python:3.11-slim AS built
RUN apt-get update && apt-get install -y --no-install-recommends build-essential cmake git && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY tools/llama_cpp_only.cmake tools/readme_hook.py tools/
# llama.cpp is compiled neither for the machine that builds (GGML_NATIVE) nor with what reads images.
ARG TORCH_INDEX
RUN python -m venv /opt/yarn-convert \
 && /opt/yarn-convert/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)" \
 && SKBUILD_CMAKE_DEFINE="LLAVA_BUILD=OFF;GGML_NATIVE=OFF;CMAKE_PROJECT_llama_cpp_INCLUDE=/source/tools/llama_cpp_only.cmake" \
    /opt/yarn-convert/bin/pip install --no-cache-dir -c constraints.txt "$(grep '^llama_cpp_python==' constraints.txt)"
COPY docs docs
COPY templates templates
COPY yarn_convert yarn_convert
RUN /opt/yarn-convert/bin/pip install --no-cache-dir -c constraints.txt '.[validate,llama-cpp]'

FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 tini && rm -rf /var/lib/apt/lists/*
COPY --from=built /opt/yarn-convert /opt/yarn-convert
ENV PATH=/opt/yarn-convert/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/cache HOME=/tmp
RUN mkdir -m 1777 /cache
VOLUME /cache
WORKDIR /work
ENTRYPOINT ["tini", "--", "yarn-convert"]
CMD ["--help"]
