#include <stdio.h>
#include "darknet.h"
/* dump CFG WEIGHTS PICTURE OUT: the inputs of the last layers, as float32. */
int main(int n, char **v)
{
    network *net = load_network(v[1], v[2], 0);
    set_batch_network(net, 1);
    float *x = malloc(net->inputs * sizeof(float));
    FILE *f = fopen(v[3], "rb");
    if (fread(x, sizeof(float), net->inputs, f) != net->inputs) return 1;
    fclose(f);
    network_predict(net, x);
    f = fopen(v[4], "wb");
    for (int i = 0; i < net->n; i++)
        if (net->layers[i].type == REGION || net->layers[i].type == YOLO) {
            layer l = net->layers[i - 1];
            fwrite(l.output, sizeof(float), l.outputs, f);
        }
    fclose(f);
    return 0;
}
